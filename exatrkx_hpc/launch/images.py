"""Images, as each engine knows them: whether one is there, so that a job is not sent to wait for nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from exatrkx_hpc.config import Farm
from exatrkx_hpc.errors import LaunchError, MissingComponent
from exatrkx_hpc.process import Completed, find_program, run

_SETUP = "'exatrkx-hpc setup' pulls it; server.image names it"


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
    image = farm.server.image
    kind, _, name = image.partition(":")
    if kind in ("id", "local"):
        return f"{image}, which the image gateway is not asked about"
    done = engine_run("shifterimg", "lookup", f"docker:{name}" if kind == "docker" else f"docker:{image}")
    if done.returncode or not done.stdout.strip():
        raise LaunchError(f"the image gateway has no {image}; {_SETUP}")
    return f"{image}, {done.stdout.split()[-1][:12]}"


def _podman(farm: Farm) -> str:
    done = engine_run("podman", "image", "exists", farm.server.image)
    if done.returncode == 1:
        raise LaunchError(f"podman has no {farm.server.image}; {_SETUP}")
    if done.returncode:
        raise LaunchError(f"podman does not tell its images: {_one_line(done)}; 'podman info' shows what is wrong")
    return farm.server.image


def _podman_hpc(farm: Farm) -> str:
    """Look for the migrated, read-only copy, which alone a node sees: migrate says nothing when it failed."""
    image = farm.server.image
    done = engine_run("podman-hpc", "images", "--noheading", image)
    if done.returncode:
        raise LaunchError(f"podman-hpc does not tell its images: {_one_line(done)}; 'podman-hpc images' shows more")
    rows = done.stdout.splitlines()
    if not rows:
        raise LaunchError(f"podman-hpc has no {image}; {_SETUP}")
    if farm.cluster.scheduler == "slurm" and not any(row.split()[-1:] == ["true"] for row in rows):
        raise LaunchError(f"{image} is on this machine alone; 'podman-hpc migrate {image}' shows it to the nodes")
    return image


def _apptainer(farm: Farm) -> str:
    image = farm.server.image
    if "://" in image:
        return f"{image}, which each server fetches; 'apptainer pull FILE {image}' makes a file of it"
    if not Path(image).exists():
        raise LaunchError(f"{image} does not exist; 'apptainer pull {image} docker://NAME:TAG' makes it")
    return image


def _one_line(done: Completed) -> str:
    return done.complaint.replace("; ", ", ")
