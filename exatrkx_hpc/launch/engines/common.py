"""What several engines say alike: a fault that is the same for each, a registry's image, a question to a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.launch.engines.base import Command
from exatrkx_hpc.launch.engines.spec import DEFAULT_SHM_SIZE, ContainerSpec
from exatrkx_hpc.launch.words import Word

#: What to do about an image that can be pulled and was not.
SETUP: Final = "pull it with 'exatrkx-hpc setup', or correct server.image"
#: The name of a site module that can be part of an engine's options.
MODULE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def ask(command: Command) -> Completed:
    """Run a command of an engine and return what it said; raises MissingComponent when its program is not here."""
    program, *words = command.words
    return run([find_program(program, remedy="load its module"), *words], timeout=command.deadline)


def registry_name(image: str) -> str:
    """Return the name of `image` in its registry, without the word for a registry: `docker:` or `docker://`."""
    return image.removeprefix("docker://").removeprefix("docker:")


def server_command(spec: ContainerSpec) -> tuple[Word, ...]:
    """Return the server's own command, with its variables set by env."""
    settings = tuple(f"{name}={value}" for name, value in spec.environment)
    return ("env", *settings, *spec.command) if settings else spec.command


def bad_image(spec: ContainerSpec, form: re.Pattern[str], example: str) -> Iterator[str]:
    """Yield a fault when the image has no name, or one that the engine would take for something else."""
    if not spec.image:
        yield f"no image is set; set server.image, such as {example}"
    elif not form.fullmatch(spec.image):
        yield f"{spec.image!r} is not a valid image name; write server.image as {example}"


def no_shm_size(spec: ContainerSpec, engine: str) -> Iterator[str]:
    """Yield a fault when somebody asks for shared memory of an engine that has no say in it."""
    if spec.shm_size != DEFAULT_SHM_SIZE:
        yield f"{engine} cannot set the size of /dev/shm, which is the node's; remove server.shm_size"


def no_modules(spec: ContainerSpec, engine: str) -> Iterator[str]:
    """Yield a fault for each module that an engine without site modules is asked for."""
    for name in spec.modules:
        if name != "gpu":  # which server.device says anyway
            yield f"{engine} has no site module {name!r}; remove it from server.modules"
