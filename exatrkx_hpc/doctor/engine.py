"""The container engine: its program, whether it can do what is asked, its image, and the mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.config import Farm
from exatrkx_hpc.doctor.finding import Finding, asked, refused
from exatrkx_hpc.launch.container_spec import ContainerSpec
from exatrkx_hpc.launch.containers import ENGINES
from exatrkx_hpc.launch.images import engine_run, find_image
from exatrkx_hpc.launch.plan import Tool, container_spec
from exatrkx_hpc.process import find_program

#: What an engine needs, in the order in which a farm meets them.
_PROGRAMS = {
    "shifter": ("shifter", "shifterimg"),
    "podman-hpc": ("podman-hpc",),
    "podman": ("podman",),
    "apptainer": ("apptainer",),
}


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
        image = asked("image", lambda: find_image(farm))
        yield image
    yield from _sources(spec)
    if engine == "shifter" and image is not None and image.ok:
        yield from _targets(spec)


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
        done = engine_run("shifter", f"--image={spec.image}", "test", "-d", folder)
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
