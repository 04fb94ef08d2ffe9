"""The container engine: its program, whether it can do what is asked, its image, and the mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.config import Farm
from exatrkx_hpc.doctor.finding import Finding, asked, refused
from exatrkx_hpc.errors import LaunchError
from exatrkx_hpc.launch.container_spec import ContainerSpec
from exatrkx_hpc.launch.containers import ENGINES
from exatrkx_hpc.launch.plan import Tool, container_spec
from exatrkx_hpc.process import Completed, find_program, run

#: What an engine needs, in the order in which a farm meets them.
_PROGRAMS = {
    "shifter": ("shifter", "shifterimg"),
    "podman-hpc": ("podman-hpc",),
    "podman": ("podman",),
    "apptainer": ("apptainer",),
}
_SETUP = "'exatrkx-hpc setup' pulls it; server.image names it"


def engine_findings(farm: Farm) -> Iterator[Finding]:
    """Yield what the engine of `farm` has and what it would refuse; what cannot be asked without it is left out."""
    engine = farm.server.engine
    spec = container_spec(farm, Tool(triton=farm.server.triton))
    faults = [refused("server settings", fault) for fault in ENGINES[engine].faults(spec)]
    yield from faults
    if engine == "none":
        return
    remedy = f"load its module, or choose another server.engine than {engine!r}"
    programs = [asked("engine", lambda name=name: find_program(name, remedy=remedy)) for name in _PROGRAMS[engine]]  # type: ignore[misc]
    yield from programs
    image = None
    if all(finding.ok for finding in programs) and not faults:
        image = asked("image", lambda: _image(farm))
        yield image
    yield from _sources(spec)
    if engine == "shifter" and image is not None and image.ok:
        yield from _targets(spec)


def _image(farm: Farm) -> str:
    """Return what is known of the image; raises LaunchError when no server could start from it."""
    look = {"shifter": _shifter, "podman-hpc": _podman_hpc, "podman": _podman, "apptainer": _apptainer}
    return look[farm.server.engine](farm)


def _engine_run(*words: str) -> Completed:
    return run([find_program(words[0], remedy="load its module"), *words[1:]])


def _shifter(farm: Farm) -> str:
    image = farm.server.image
    kind, _, name = image.partition(":")
    if kind in ("id", "local"):
        return f"{image}, which the image gateway is not asked about"
    done = _engine_run("shifterimg", "lookup", f"docker:{name}" if kind == "docker" else f"docker:{image}")
    if done.returncode or not done.stdout.strip():
        raise LaunchError(f"the image gateway has no {image}; {_SETUP}")
    return f"{image}, {done.stdout.split()[-1][:12]}"


def _podman(farm: Farm) -> str:
    done = _engine_run("podman", "image", "exists", farm.server.image)
    if done.returncode == 1:
        raise LaunchError(f"podman has no {farm.server.image}; {_SETUP}")
    if done.returncode:
        raise LaunchError(f"podman does not tell its images: {_one_line(done)}; 'podman info' shows what is wrong")
    return farm.server.image


def _podman_hpc(farm: Farm) -> str:
    """Look for the migrated, read-only copy, which alone a node sees: migrate says nothing when it failed."""
    image = farm.server.image
    done = _engine_run("podman-hpc", "images", "--noheading", image)
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


def _sources(spec: ContainerSpec) -> Iterator[Finding]:
    for source, target in spec.mounts:
        found = f"{source} as {target}"
        if Path(source).exists():
            yield Finding(what="mount", ok=True, found=found)
        else:
            remedy = "make it, or take it out of server.mounts"
            yield Finding(what="mount", ok=False, found=f"{found}: it is not here", remedy=remedy)


def _targets(spec: ContainerSpec) -> Iterator[Finding]:
    """Shifter makes no folder in the image, and shows folders of the host only where the site says so."""
    moved = [target for source, target in spec.mounts if source != target]
    same = [folder for folder in dict.fromkeys((*spec.folders, *_kept(spec))) if Path(folder).exists()]
    for folder in (*moved, *same):
        done = _engine_run("shifter", f"--image={spec.image}", "test", "-d", folder)
        if done.returncode == 0:
            yield Finding(what="in the container", ok=True, found=folder)
        elif folder in moved:
            remedy = "mount to a folder that the image has (server.mounts); shifter makes none"
            yield Finding(what="in the container", ok=False, found=f"the image has no {folder}", remedy=remedy)
        else:
            remedy = "put it on a file system that the site shows in every container, as scratch is"
            yield Finding(what="in the container", ok=False, found=f"{folder} is not seen there", remedy=remedy)


def _kept(spec: ContainerSpec) -> tuple[str, ...]:
    return tuple(target for source, target in spec.mounts if source == target)
