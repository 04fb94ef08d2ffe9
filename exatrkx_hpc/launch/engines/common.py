"""Functions that several engines share: common faults, image names of a registry, calls of a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.launch.engines.base import Command
from exatrkx_hpc.launch.engines.spec import DEFAULT_SHM_SIZE, ContainerSpec
from exatrkx_hpc.launch.words import Word

#: Next step for an image that can be pulled but is missing.
SETUP: Final = "pull it with 'exatrkx-hpc setup', or correct server.image"
#: A name of a site module that is valid in an option of an engine.
MODULE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def ask(command: Command) -> Completed:
    """Run a command of an engine and return its result; raises MissingComponent if the program is missing."""
    program, *words = command.words
    return run([find_program(program, remedy="load its module"), *words], timeout=command.deadline)


def registry_name(image: str) -> str:
    """Return the name of `image` in its registry, without the prefix `docker:` or `docker://`."""
    return image.removeprefix("docker://").removeprefix("docker:")


def server_command(spec: ContainerSpec) -> tuple[Word, ...]:
    """Return the server's own command; `env` sets its variables."""
    settings = tuple(f"{name}={value}" for name, value in spec.environment)
    return ("env", *settings, *spec.command) if settings else spec.command


def bad_image(spec: ContainerSpec, form: re.Pattern[str], example: str) -> Iterator[str]:
    """Yield a fault if the image is not set, or its name is not valid for the engine."""
    if not spec.image:
        yield f"no image is set; set server.image, such as {example}"
    elif not form.fullmatch(spec.image):
        yield f"{spec.image!r} is not a valid image name; write server.image as {example}"


def no_shm_size(spec: ContainerSpec, engine: str) -> Iterator[str]:
    """Yield a fault if the size of shared memory is not the default, because the engine cannot set it."""
    if spec.shm_size != DEFAULT_SHM_SIZE:
        yield f"{engine} cannot set the size of /dev/shm, which is the node's; remove server.shm_size"


def no_modules(spec: ContainerSpec, engine: str) -> Iterator[str]:
    """Yield a fault for each module that the farm requests from an engine without site modules."""
    for name in spec.modules:
        if name != "gpu":  # server.device already requests it
            yield f"{engine} has no site module {name!r}; remove it from server.modules"
