"""What a server needs of its container, whatever starts it."""

from __future__ import annotations

from dataclasses import dataclass

from exatrkx_hpc.launch.words import Word

#: What the models get where nobody asked for another amount; an engine without a say in it refuses another one.
DEFAULT_SHM_SIZE = "20g"


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What a server needs of its container, in no engine's words.

    `folders` are folders of the host that the container sees under the same path, read-only; `mounts` are
    further ones, as pairs of the host's folder and its place in the container. `environment` are variables set
    for the server, `forwarded` those that it takes over from the node.
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
        """Every folder of the host with its place in the container, each once."""
        return tuple(dict.fromkeys((*((folder, folder) for folder in self.folders), *self.mounts)))
