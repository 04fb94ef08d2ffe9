"""NERSC's podman-hpc: podman with a flag for each site module; nodes see only migrated images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.launch.engines.base import Command
from exatrkx_hpc.launch.engines.common import MODULE, SETUP, ask
from exatrkx_hpc.launch.engines.podman import Podman
from exatrkx_hpc.launch.engines.spec import ContainerSpec


class PodmanHpc(Podman):
    """podman-hpc, which passes its arguments on to podman."""

    programs: ClassVar[tuple[str, ...]] = ("podman-hpc",)
    images_of_each_node: ClassVar[bool] = False

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return podman's faults, invalid module names, and server options that podman-hpc takes as its own."""
        modules = (
            f"podman-hpc has no module {name!r}; use modules such as gpu or nccl in server.modules"
            for name in spec.modules
            if not MODULE.fullmatch(name)
        )
        return (*self._wrong_words(spec), *modules, *_stolen(spec))

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Check that the image is there, and with `other_machines` that it has a migrated, read-only copy.

        Nodes see only the migrated copy, and `migrate` reports no error when it fails.
        """
        image = self.image_name(image)
        done = ask(Command(words=(self.program, "images", "--noheading", image)))
        if done.returncode:
            raise LaunchError(f"podman-hpc cannot list its images: {done.complaint}; see 'podman-hpc images'")
        rows = done.stdout.splitlines()
        if not rows:
            raise LaunchError(f"podman-hpc has no {image}; {SETUP}")
        if other_machines and not any(row.split()[-1:] == ["true"] for row in rows):
            raise LaunchError(
                f"{image} exists only on this machine; make it visible to the nodes with 'podman-hpc migrate {image}'"
            )
        return image

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        names = dict.fromkeys((*(("gpu",) if spec.gpus else ()), *spec.modules))
        return tuple(f"--{name}" for name in names)


def _stolen(spec: ContainerSpec) -> Iterator[str]:
    """Yield a fault for each server option that podman-hpc 1.2 takes as its own, although it follows the image."""
    own = {"--help", "--gpu", *(f"--{name}" for name in spec.modules)}
    for word in spec.command:
        if word in own:
            yield f"podman-hpc takes {word} for an option of its own; remove it from server.extra_arguments"


ENGINE: Final = PodmanHpc()
