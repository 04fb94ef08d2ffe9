"""podman on a node, with the host's network; each machine has its own images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import ClassVar, Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.launch.engines.base import PULL_DEADLINE, Command, Container, ContainerEngine
from exatrkx_hpc.launch.engines.common import SETUP, ask, bad_image, no_modules, registry_name
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Var, Word

_IMAGE = re.compile(r"([a-z-]+:/?/?)?[A-Za-z0-9/][A-Za-z0-9_.:/@-]*")
_SHM_SIZE = re.compile(r"[1-9][0-9]*[bkmgBKMG]?")


class Podman(ContainerEngine):
    """podman, with all settings as options; its containers outlive a killed server."""

    programs: ClassVar[tuple[str, ...]] = ("podman",)
    images_of_each_node: ClassVar[bool] = True

    @property
    def program(self) -> str:
        """The name of the command."""
        return self.programs[0]

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return the settings that podman does not support or would misread."""
        return (*self._wrong_words(spec), *no_modules(spec, self.program))

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command of a named container, which podman removes when it ends.

        It replaces a container of the same name that a killed job left. The server's output goes only to its log.
        """
        return (
            *(self.program, "run", "--rm", "--replace", "--name", Var("container")),
            *self._device_flags(spec),
            *("--net", "host", f"--shm-size={spec.shm_size}", "--log-driver=none"),
            *(word for source, target in spec.places for word in ("-v", f"{source}:{target}:ro")),
            *(word for name in spec.forwarded for word in ("-e", name)),
            *(word for name, value in spec.environment for word in ("-e", f"{name}={value}")),
            self.image_name(spec.image),
            *spec.command,
        )

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return `command` in a new container, instead of the image's ENTRYPOINT, which may print a lot."""
        program, *words = command
        image = self.image_name(spec.image)
        return Command(words=(self.program, "run", "--rm", "--net", "none", "--entrypoint", program, image, *words))

    def image_name(self, image: str) -> str:
        """Return the name of `image` in podman's store."""
        return registry_name(image)

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Check that the image is in the store of this machine."""
        image = self.image_name(image)
        done = ask(Command(words=(self.program, "image", "exists", image)))
        if done.returncode == 1:
            raise LaunchError(f"podman has no {image}; {SETUP}")
        if done.returncode:
            raise LaunchError(f"podman cannot list its images: {done.complaint}; see 'podman info'")
        return image

    def pull(self, image: str) -> Command | None:
        """Return the command that pulls an image into the store of this machine."""
        return Command(words=(self.program, "pull", self.image_name(image)), deadline=PULL_DEADLINE)

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes the container at once, running or not."""
        return (self.program, "rm", "--force", "--time", "0", "--ignore", Var("container"))

    def listing(self) -> tuple[str, ...]:
        """Return the command that lists all containers, running or not."""
        return (self.program, "ps", "--all", "--format", "json")

    def read_listing(self, text: str) -> tuple[Container, ...]:
        """Return the containers in podman's JSON; without containers, podman may print nothing."""
        rows = json.loads(text or "[]")
        if not isinstance(rows, list):
            raise ValueError(f"no list: {text[:80]!r}")
        return tuple(_container(row) for row in rows if isinstance(row, dict))

    def _wrong_words(self, spec: ContainerSpec) -> Iterator[str]:
        yield from bad_image(spec, _IMAGE, "docker.io/NAME:TAG")
        if not _SHM_SIZE.fullmatch(spec.shm_size):
            yield f"{self.program} reads no amount of memory in {spec.shm_size!r}; write server.shm_size such as '20g'"

    def _device_flags(self, spec: ContainerSpec) -> tuple[str, ...]:
        return ("--device", "nvidia.com/gpu=all") if spec.gpus else ()


def _container(row: dict[str, object]) -> Container:
    return Container(
        name=next(iter(_texts(row.get("Names"))), ""),
        mounts=_texts(row.get("Mounts")),
        running=row.get("State") == "running",
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


ENGINE: Final = Podman()
