"""The specification of a server's container, independent of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from exatrkx_hpc.launch.words import Word

#: The default size of shared memory. An engine that cannot set the size refuses other values.
DEFAULT_SHM_SIZE = "20g"


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What a server needs of its container, independent of the engine.

    `folders` are folders of the host, mounted read-only at the same path. `mounts` are further mounts: pairs of a
    folder of the host and its path in the container. `environment` are variables set for the server, `forwarded` names
    of variables that it inherits from the node.
    """

    image: str
    command: tuple[Word, ...]
    folders: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    forwarded: tuple[str, ...] = ("CUDA_VISIBLE_DEVICES",)
    modules: tuple[str, ...] = ()
    shm_size: str = DEFAULT_SHM_SIZE
    gpus: bool = True

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a folder of the host and its path in the container, each pair once."""
        return tuple(dict.fromkeys((*((folder, folder) for folder in self.folders), *self.mounts)))
