"""podman on a node, with the host's network; each machine has images of its own."""

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
    """podman, which is told everything; its containers outlast a server that was killed."""

    programs: ClassVar[tuple[str, ...]] = ("podman",)
    images_of_each_node: ClassVar[bool] = True

    @property
    def program(self) -> str:
        """The name of the command."""
        return self.programs[0]

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return what podman has no word for, or would take for something else."""
        return (*self._wrong_words(spec), *no_modules(spec, self.program))

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
            self.image_name(spec.image),
            *spec.command,
        )

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return the command in a container of its own, in the place of the image's ENTRYPOINT, which may say much."""
        program, *words = command
        image = self.image_name(spec.image)
        return Command(words=(self.program, "run", "--rm", "--net", "none", "--entrypoint", program, image, *words))

    def image_name(self, image: str) -> str:
        """Return the name that podman has `image` in its store by."""
        return registry_name(image)

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Look for the image in the store of this machine."""
        image = self.image_name(image)
        done = ask(Command(words=(self.program, "image", "exists", image)))
        if done.returncode == 1:
            raise LaunchError(f"podman has no {image}; {SETUP}")
        if done.returncode:
            raise LaunchError(f"podman cannot list its images: {done.complaint}; see 'podman info'")
        return image

    def pull(self, image: str) -> Command | None:
        """Return what pulls an image into the store of this machine."""
        return Command(words=(self.program, "pull", self.image_name(image)), deadline=PULL_DEADLINE)

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes the container at once, whether it still runs or not."""
        return (self.program, "rm", "--force", "--time", "0", "--ignore", Var("container"))

    def listing(self) -> tuple[str, ...]:
        """Return the command that tells every container, running or not."""
        return (self.program, "ps", "--all", "--format", "json")

    def read_listing(self, text: str) -> tuple[Container, ...]:
        """Return the containers of podman's JSON; without any it may print nothing."""
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
