"""An example of a new container engine: one file, and a line of the engine table, which `engines` adds.

Its program, `box`, has its own images and containers; a test writes the program.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.engines.base import PULL_DEADLINE, Command, Container, ContainerEngine, Trial
from exatrkx_hpc.launch.engines.common import (
    SETUP,
    ask,
    bad_image,
    no_modules,
    no_shm_size,
    registry_name,
    server_command,
)
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.words import Var, Word

_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9_.:/-]*")


class Box(ContainerEngine):
    """The engine `box`, which runs the command on this machine and records the container."""

    programs: ClassVar[tuple[str, ...]] = ("box",)

    def faults(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Return an invalid image name and the options that box does not have."""
        return (*bad_image(spec, _IMAGE, "NAME:TAG"), *no_shm_size(spec, "box"), *no_modules(spec, "box"))

    def argv(self, spec: ContainerSpec) -> tuple[Word, ...]:
        """Return the command that runs the server in a named container."""
        binds = (f"--bind={source}={target}" for source, target in spec.places)
        return ("box", "run", Var("container"), *binds, self.image_name(spec.image), *server_command(spec))

    def question(self, spec: ContainerSpec, command: tuple[str, ...]) -> Command:
        """Return `command` in a container that does not belong to a server."""
        return Command(words=("box", "run", "question", self.image_name(spec.image), *command))

    def image_name(self, image: str) -> str:
        """Return the name without the prefix for a registry."""
        return registry_name(image)

    def find_image(self, image: str, *, other_machines: bool) -> str:
        """Ask box for the image."""
        image = self.image_name(image)
        done = ask(Command(words=("box", "has", image)))
        if done.returncode == 1:
            raise LaunchError(f"box has no {image}; {SETUP}")
        if done.returncode:
            raise LaunchError(f"box cannot list its images: {done.complaint}; see 'box has {image}'")
        return image

    def pull(self, image: str) -> Command | None:
        """Return the command that pulls the image into box."""
        return Command(words=("box", "pull", self.image_name(image)), deadline=PULL_DEADLINE)

    def removal(self) -> tuple[Word, ...]:
        """Return the command that removes a container."""
        return ("box", "remove", Var("container"))

    def listing(self) -> tuple[str, ...]:
        """Return the command that lists the containers, one per line."""
        return ("box", "list")

    def read_listing(self, text: str) -> tuple[Container, ...]:
        """Return the containers; each line has the name, a tab, and the mounted folders separated by colons."""
        rows = [line.split("\t") for line in text.splitlines()]
        if any(len(row) != 2 for row in rows):
            raise ValueError(f"no list of containers: {text[:80]!r}")
        return tuple(Container(name=name, mounts=tuple(mounts.split(":")), running=True) for name, mounts in rows)

    def trials(self, spec: ContainerSpec) -> tuple[Trial, ...]:
        """Return a trial of each existing mount, which box may fail to show."""
        image = self.image_name(spec.image)
        return tuple(
            Trial(
                command=Command(words=("box", "run", "trial", f"--bind={source}={target}", image, "true")),
                found=f"{source} as {target}",
                refusal=partial(_not_shown, source),
            )
            for source, target in spec.mounts
            if Path(source).exists()
        )


def _not_shown(source: str, done: Completed) -> str:
    return f"box does not show {source}: {done.complaint}; remove it from server.mounts"


ENGINE: Final = Box()
