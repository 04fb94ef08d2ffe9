"""Images, as each engine knows them: whether one is there, so that a job is not sent to wait for nothing."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.engines.spec import apptainer_image, podman_image, shifter_image
from exatrkx_hpc.launch.events import ImageFound, ImagePulling

_SETUP = "'exatrkx-hpc setup' pulls it; server.image names it"
_CHECK_NAME = "check the name in server.image, and that this machine reaches its registry"


def refuse_missing_image(farm: Farm) -> None:
    """Raise LaunchError when no server of `farm` could start from its image, as far as this machine can know.

    It cannot where the engine's program is on the nodes alone, nor where each node keeps images of its own.
    """
    engine = farm.server.engine
    if engine == "none" or (engine == "podman" and farm.cluster.scheduler == "slurm"):
        return
    with contextlib.suppress(MissingComponent):
        find_image(farm)


def find_image(farm: Farm) -> str:
    """Return what the engine of `farm` says of the image.

    Raises LaunchError when no server could start from it, MissingComponent when the engine's program is not here.
    """
    look = {"shifter": _shifter, "podman-hpc": _podman_hpc, "podman": _podman, "apptainer": _apptainer}
    return look[farm.server.engine](farm)


def engine_run(*words: str) -> Completed:
    """Run a program of an engine and return what it said; raises MissingComponent when it is not here."""
    return run([find_program(words[0], remedy="load its module"), *words[1:]])


def _shifter(farm: Farm) -> str:
    """Ask the image gateway. Of an image that it has not, it says nothing; what it says is of something else."""
    image = shifter_image(farm.server.image)
    if image.partition(":")[0] in ("id", "local"):
        return f"{image}, which the image gateway is not asked about"
    done = engine_run("shifterimg", "lookup", image)
    said = done.stdout.split()
    if done.returncode == 0 and said:
        return f"{image}, {said[-1][:12]}"
    if said or done.stderr.strip():
        again = f"'shifterimg lookup {image}' asks again"
        raise LaunchError(f"the image gateway does not tell whether it has {image}: {done.complaint}; {again}")
    raise LaunchError(f"the image gateway has no {image}; {_how_to_get(image)}")


def _how_to_get(image: str) -> str:
    return _SETUP if image.startswith("docker:") else "server.image names it, 'shifterimg images' lists those it has"


def _podman(farm: Farm) -> str:
    image = podman_image(farm.server.image)
    done = engine_run("podman", "image", "exists", image)
    if done.returncode == 1:
        raise LaunchError(f"podman has no {image}; {_SETUP}")
    if done.returncode:
        raise LaunchError(f"podman does not tell its images: {done.complaint}; 'podman info' shows what is wrong")
    return image


def _podman_hpc(farm: Farm) -> str:
    """Look for the migrated, read-only copy, which alone a node sees: migrate says nothing when it failed."""
    image = podman_image(farm.server.image)
    done = engine_run("podman-hpc", "images", "--noheading", image)
    if done.returncode:
        raise LaunchError(f"podman-hpc does not tell its images: {done.complaint}; 'podman-hpc images' shows more")
    rows = done.stdout.splitlines()
    if not rows:
        raise LaunchError(f"podman-hpc has no {image}; {_SETUP}")
    if farm.cluster.scheduler == "slurm" and not any(row.split()[-1:] == ["true"] for row in rows):
        raise LaunchError(f"{image} is on this machine alone; 'podman-hpc migrate {image}' shows it to the nodes")
    return image


def _apptainer(farm: Farm) -> str:
    image = apptainer_image(farm.server.image)
    if "://" in image:
        return f"{image}, which each server fetches; 'apptainer pull FILE {image}' makes a file of it"
    if not Path(image).exists():
        raise LaunchError(f"{image} does not exist; 'apptainer pull {image} docker://NAME:TAG' makes it")
    return image


#: The command that pulls an image, for the engines that keep images of their own, and how the engine names the image.
_PULLS = {
    "shifter": ("shifterimg", shifter_image),
    "podman-hpc": ("podman-hpc", podman_image),
    "podman": ("podman", podman_image),
}
#: What an engine writes over with its next words, and how it says so to a terminal.
_TERMINAL = re.compile(r"[^\n]*\r(?!\n)|\x1b\[[0-9;]*[A-Za-z]")
#: A big image over a slow network.
_PULL_DEADLINE = 3600.0


def pull_image(farm: Farm, tell: Tell) -> None:
    """Pull the image of `farm` with the engine's own command, and see that it is there afterwards.

    A pull that fails may well end with status 0. Raises LaunchError when no server could start from the image,
    MissingComponent when the engine's program is not here.
    """
    engine = farm.server.engine
    if engine == "none":
        return
    said = _pull(farm, tell) if engine in _PULLS else ""
    try:
        found = find_image(farm)
    except LaunchError as error:
        what, _, remedy = str(error).partition("; ")
        remedy = _CHECK_NAME if remedy == _SETUP else remedy
        raise LaunchError(f"{what}{f', after a pull that said: {said}' if said else ''}; {remedy}") from error
    tell(ImageFound(image=found))


def _pull(farm: Farm, tell: Tell) -> str:
    """Return what the engine said last, on one line; nothing for an image that comes from no registry."""
    engine = farm.server.engine
    program, named = _PULLS[engine]
    image = named(farm.server.image)
    if engine == "shifter" and not image.startswith("docker:"):
        return ""
    tell(ImagePulling(command=f"{program} pull {image}"))
    path = find_program(program, remedy=f"load its module, or choose another server.engine than {engine!r}")
    done = run([path, "pull", image], timeout=_PULL_DEADLINE)
    if done.returncode:
        raise LaunchError(f"{program} pull {image} failed (exit {done.returncode}): {done.complaint}; {_CHECK_NAME}")
    return " ".join(_TERMINAL.sub("", done.stdout).strip().splitlines()[-1:])
