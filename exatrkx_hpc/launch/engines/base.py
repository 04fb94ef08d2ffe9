"""How each engine starts a container: a specification becomes words of a command, or a list of faults.

The engines differ in what they let a user say. shifter has no word for shared memory, because it uses the
node's; podman-hpc has one flag for each site module and hands on only the variables that it is told to.
"""

from __future__ import annotations

from typing import Protocol

from exatrkx_hpc.config.values import Engine
from exatrkx_hpc.launch.engines.common import (
    apptainer_faults,
    bare_faults,
    podman_faults,
    podman_hpc_faults,
    shifter_faults,
)
from exatrkx_hpc.launch.engines.spec import ContainerSpec, apptainer_image, podman_image, shifter_image
from exatrkx_hpc.launch.words import Var, Word


class ContainerEngine(Protocol):
    """What every engine can say about a specification."""

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what the engine cannot do of `spec`, each in one line with what to do about it."""
        ...

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the #SBATCH options that the engine reads, as pairs of name and value."""
        ...

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command that starts the container and, in it, the server."""
        ...

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command that runs another one in the image, on a machine without GPUs, for its answer."""
        ...

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the variables of the node that the engine reads before it starts the container."""
        ...

    def foreign(self) -> tuple[str, ...]:
        """Return the variables by which a shell's own allocation would say something else to the engine."""
        ...

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes what a killed server left of its container; empty if nothing can be."""
        ...

    def listing(self) -> tuple[str, ...]:
        """Return the command that tells every container as JSON, as podman does; empty if none can be left."""
        ...


class _OwnWords:
    """An engine that reads its own command line only, and leaves no more than its processes."""

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return nothing: Slurm needs to know nothing of it."""
        return ()

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return nothing: it reads no variables."""
        return ()

    def foreign(self) -> tuple[str, ...]:
        """Return nothing, for the same reason."""
        return ()

    def removal(self) -> tuple[Word, ...]:
        """Return nothing: there is nothing to remove."""
        return ()

    def listing(self) -> tuple[str, ...]:
        """Return nothing, for the same reason."""
        return ()


class NoContainer(_OwnWords):
    """A bare binary of the node."""

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what cannot be without a container."""
        return bare_faults(spec)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the server's own command, with its variables set by env."""
        settings = tuple(f"{name}={value}" for name, value in spec.environment)
        return ("env", *settings, *spec.command) if settings else spec.command

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command itself."""
        return command


class Shifter(_OwnWords):
    """NERSC's shifter: the image is named to Slurm; network and /dev/shm are the node's."""

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what shifter has no word for, or refuses."""
        return shifter_faults(spec)

    def directives(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return image, modules and volumes, which shifter's Slurm plugin reads.

        A volume's target must exist in the image, so `folders` are not mounted: they lie on a file system that
        the site shows in every container, as scratch is.
        """
        return tuple((name, value) for name, _, value in self._words(spec))

    def exports(self, spec: ContainerSpec) -> tuple[tuple[str, str], ...]:
        """Return the same as variables: the lines of a script say nothing in a shell's own allocation."""
        return tuple((variable, value) for _, variable, value in self._words(spec))

    def foreign(self) -> tuple[str, ...]:
        """Return where Slurm's plugin puts the image of the allocation, which goes before SHIFTER_IMAGEREQUEST."""
        return tuple(f"{prefix}SHIFTER_{name}" for prefix in ("", "SLURM_SPANK_") for name in ("IMAGE", "IMAGETYPE"))

    def _words(self, spec: ContainerSpec) -> tuple[tuple[str, str, str], ...]:
        volumes = ";".join(f"{source}:{target}:ro" for source, target in spec.mounts if source != target)
        words = (
            ("image", "SHIFTER_IMAGEREQUEST", shifter_image(spec.image)),
            ("module", "SHIFTER_MODULE", ",".join(spec.modules)),
            ("volume", "SHIFTER_VOLUME", volumes),
        )
        return tuple((name, variable, value) for name, variable, value in words if value)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; variables of the host reach the container by themselves."""
        return ("shifter", *(f"--env={name}={value}" for name, value in spec.environment), *spec.command)

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command in shifter, without modules."""
        return ("shifter", f"--image={shifter_image(spec.image)}", "--module=none", *command)


class Podman(_OwnWords):
    """podman on a node, with the host's network."""

    program: str = "podman"

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what podman has no word for, or would take for something else."""
        return podman_faults(spec)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command of a container with a name of its own, which goes away when it ends.

        One of that name that a killed job left is replaced. The server's words go to its log and nowhere else.
        """
        return (
            *(self.program, "run", "--rm", "--replace", "--name", Var("container")),
            *self._device_flags(spec),
            *("--net", "host", f"--shm-size={spec.shm_size}", "--log-driver=none"),
            *(word for source, target in spec.places for word in ("-v", f"{source}:{target}:ro")),
            *(word for name in spec.forwarded for word in ("-e", name)),
            *(word for name, value in spec.environment for word in ("-e", f"{name}={value}")),
            podman_image(spec.image),
            *spec.command,
        )

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command in a container of its own, in the place of the image's ENTRYPOINT, which may say much."""
        program, *words = command
        return (self.program, "run", "--rm", "--net", "none", "--entrypoint", program, podman_image(spec.image), *words)

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes the container at once, whether it still runs or not."""
        return (self.program, "rm", "--force", "--time", "0", "--ignore", Var("container"))

    def listing(self) -> tuple[str, ...]:
        """Return the command that tells every container, running or not."""
        return (self.program, "ps", "--all", "--format", "json")

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        return ("--device", "nvidia.com/gpu=all") if spec.gpus else ()


class PodmanHpc(Podman):
    """NERSC's podman-hpc: podman with a flag for each site module."""

    program = "podman-hpc"

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what podman-hpc has no word for, or would take for something else."""
        return podman_hpc_faults(spec)

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        names = dict.fromkeys((*(("gpu",) if spec.gpus else ()), *spec.modules))
        return tuple(f"--{name}" for name in names)


class Apptainer(_OwnWords):
    """apptainer (formerly singularity): the host's network and /dev/shm, image as a file or a URI."""

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what apptainer has no word for, or would cut."""
        return apptainer_faults(spec)

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command; variables of the host reach the container by themselves.

        Its own --env cuts a value at a comma and fills in a $, so that env, inside, sets the variables.
        """
        return (
            "apptainer",
            "exec",
            *(("--nv",) if spec.gpus else ()),
            *(word for source, target in spec.places for word in ("--bind", f"{source}:{target}:ro")),
            apptainer_image(spec.image),
            *NoContainer().argv(spec),
        )

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command in apptainer."""
        return ("apptainer", "exec", apptainer_image(spec.image), *command)


ENGINES: dict[Engine, ContainerEngine] = {
    "none": NoContainer(),
    "shifter": Shifter(),
    "podman": Podman(),
    "podman-hpc": PodmanHpc(),
    "apptainer": Apptainer(),
}
