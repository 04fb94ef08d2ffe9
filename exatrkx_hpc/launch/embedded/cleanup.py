"""Cleanup after killed servers: find and remove their containers and shared memory, and nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.config.values import Engine
from exatrkx_hpc.launch.engines.base import Container
from exatrkx_hpc.launch.engines.table import engine_named
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.words import Var

_SHARED_MEMORY = Path("/dev/shm")
_CONTAINER = re.compile(r"exatrkx-([0-9]+)-.+-[0-9]+")


@dataclass(frozen=True, kw_only=True)
class ServerContainer:
    """A container of a farm's server: its name, its job, and whether it runs."""

    name: str
    job: str
    running: bool


def containers(engine: Engine, run_root: Path) -> tuple[ServerContainer, ...]:
    """Return the containers that jobs of this run root started on this machine, running or not.

    The name is not enough, because each run root has its own job IDs of the embedded scheduler. So a container counts
    only if it mounts the Python folder of this run root. Raises MissingComponent if the engine is not on this machine,
    LaunchError if the engine cannot list its containers.
    """
    words = engine_named(engine).listing()
    if not words:
        return ()
    program = find_program(words[0], remedy="load its module, so that its containers can be listed")
    done = run([program, *words[1:]])
    listed = _listed(engine, done)
    if listed is None:
        raise LaunchError(
            f"cannot list the containers of {words[0]} (exit {done.returncode}): {done.complaint}; "
            f"run '{' '.join(words[:3])}' to see the error"
        )
    found = (_of_a_server(container, FarmDir(run_root).python) for container in listed)
    return tuple(container for container in found if container is not None)


def _listed(engine: Engine, done: Completed) -> tuple[Container, ...] | None:
    """Return the containers in the engine's answer, or None if the command failed or the answer is unreadable."""
    if done.returncode:
        return None
    try:
        return engine_named(engine).read_listing(done.stdout)
    except ValueError:
        return None


def _of_a_server(container: Container, python: Path) -> ServerContainer | None:
    """Return the container as that of a farm's server, or None if it is not one or mounts no subfolder of `python`."""
    match = _CONTAINER.fullmatch(container.name)
    if match is None or not any(Path(place).parent == python for place in container.mounts):
        return None
    return ServerContainer(name=container.name, job=match[1], running=container.running)


def removal_argv(engine: Engine, names: Sequence[str]) -> list[str]:
    """Return the command that removes the containers with these names at once, running or not."""
    container = Var("container")
    words = (names if word == container else (word,) for word in engine_named(engine).removal())
    return [text for group in words for text in group if isinstance(text, str)]


def remove_containers(engine: Engine, run_root: Path, job: str) -> None:
    """Remove the containers of `job` from this machine; raises as `containers`, and LaunchError if removal fails."""
    names = [container.name for container in containers(engine, run_root) if container.job == job]
    if not names:
        return
    argv = removal_argv(engine, names)
    done = run([find_program(argv[0], remedy="load its module"), *argv[1:]])
    if done.returncode:
        raise LaunchError(
            f"containers of job {job} still exist ({done.complaint}); remove them with '{' '.join(argv)}'"
        )


def remove_shared_memory(job: str, nodes: Iterable[str]) -> None:
    """Remove the shared memory segments of the servers of `job` on these nodes that no process maps."""
    for node in nodes:
        for segment in _SHARED_MEMORY.glob(f"exatrkx_{job}_{node}-*"):
            if not _mapped(segment):
                with contextlib.suppress(OSError):
                    segment.unlink()


def _mapped(segment: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(segment) in (entry / "maps").read_text():
                return True
    return False
