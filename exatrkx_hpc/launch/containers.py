"""How each engine starts a container: a specification becomes words of a command.

The engines differ in what they let a user say. shifter has no word for shared memory, because it uses the
node's; podman-hpc has one flag for each site module and hands on only the variables that it is told to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from exatrkx_hpc.launch.words import Var, Word
from exatrkx_hpc.values import Engine


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What a server needs of its container, whatever starts it.

    `folders` are folders of the host that the container sees under the same path, read-only; `environment`
    are variables set for the server, `forwarded` those that it takes over from the node.
    """

    image: str
    command: tuple[Word, ...]
    folders: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    forwarded: tuple[str, ...] = ("CUDA_VISIBLE_DEVICES",)
    modules: tuple[str, ...] = ()
    shm_size: str = "20g"
    gpus: bool = True


class ContainerEngine(Protocol):
    """What every engine can say about a specification."""

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the #SBATCH options that the engine reads, as pairs of name and value."""
        ...

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command that starts the container and, in it, the server."""
        ...


class NoContainer:
    """A bare binary of the node."""

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return nothing: Slurm needs to know nothing of it."""
        return ()

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the server's own command, with its variables set by env."""
        settings = tuple(f"{name}={value}" for name, value in spec.environment)
        return ("env", *settings, *spec.command) if settings else spec.command


class Shifter:
    """NERSC's shifter: the image is named to Slurm; network and /dev/shm are the node's."""

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return image and modules, which shifter's Slurm plugin reads.

        A volume's target must exist in the image, so the folders are not mounted: they lie on a file system
        that the site shows in every container, as scratch is.
        """
        pairs = (("image", spec.image), ("module", ",".join(spec.modules)))
        return tuple((name, value) for name, value in pairs if value)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; variables of the host reach the container by themselves."""
        return ("shifter", *(f"--env={name}={value}" for name, value in spec.environment), *spec.command)


class Podman:
    """podman on a node, with the host's network."""

    program: tuple[str, ...] = ("podman", "run")

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return nothing: podman reads its own command line only."""
        return ()

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command of a container with a name of its own, which goes away when it ends."""
        return (
            *self.program,
            "--rm",
            "--name",
            Var("container"),
            *self._device_flags(spec),
            *("--net", "host", f"--shm-size={spec.shm_size}"),
            *(word for folder in spec.folders for word in ("-v", f"{folder}:{folder}:ro")),
            *(word for name in spec.forwarded for word in ("-e", name)),
            *(word for name, value in spec.environment for word in ("-e", f"{name}={value}")),
            spec.image,
            *spec.command,
        )

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        return ("--device", "nvidia.com/gpu=all") if spec.gpus else ()


class PodmanHpc(Podman):
    """NERSC's podman-hpc: podman with a flag for each site module."""

    program = ("podman-hpc", "run")

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        names = dict.fromkeys((*(("gpu",) if spec.gpus else ()), *spec.modules))
        return tuple(f"--{name}" for name in names)


class Apptainer:
    """apptainer (formerly singularity): the host's network and /dev/shm, image as a file or a URI."""

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return nothing: apptainer reads its own command line only."""
        return ()

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; variables of the host reach the container by themselves.

        Its own --env cuts a value at a comma and fills in a $, so that env, inside, sets the variables.
        """
        return (
            "apptainer",
            "exec",
            *(("--nv",) if spec.gpus else ()),
            *(word for folder in spec.folders for word in ("--bind", f"{folder}:{folder}:ro")),
            spec.image,
            *NoContainer().argv(spec),
        )


ENGINES: dict[Engine, ContainerEngine] = {
    "none": NoContainer(),
    "shifter": Shifter(),
    "podman": Podman(),
    "podman-hpc": PodmanHpc(),
    "apptainer": Apptainer(),
}
