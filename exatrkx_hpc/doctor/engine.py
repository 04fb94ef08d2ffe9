"""The container engine: its program, whether it can do what is asked, its image, and the mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding, asked, refused
from exatrkx_hpc.launch.engines.commands import ENGINES
from exatrkx_hpc.launch.engines.images import engine_run, find_image
from exatrkx_hpc.launch.engines.spec import ContainerSpec, shifter_image
from exatrkx_hpc.launch.plan import Tool, container_spec

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
        yield from _in_shifter(spec)


def _sources(spec: ContainerSpec) -> Iterator[Finding]:
    for source, target in spec.mounts:
        found = f"{source} as {target}"
        if Path(source).exists():
            yield Finding(what="mount", ok=True, found=found)
        else:
            remedy = "make it, or take it out of server.mounts"
            yield Finding(what="mount", ok=False, found=f"{found}: it is not here", remedy=remedy)


def _in_shifter(spec: ContainerSpec) -> Iterator[Finding]:
    """Ask shifter itself: which places it makes, and which folders of the host it shows, the site has decided."""
    image = f"--image={shifter_image(spec.image)}"
    moved = [(source, target) for source, target in spec.mounts if source != target and Path(source).exists()]
    for source, target in moved:
        done = engine_run("shifter", image, f"--volume={source}:{target}:ro", "true")
        if done.returncode == 0:
            yield Finding(what="in the container", ok=True, found=f"{source} as {target}")
        else:
            found = f"shifter does not mount {source} as {target}: {done.complaint}"
            remedy = "mount a folder that the site shows in every container, to one that the image has or to /NAME"
            yield Finding(what="in the container", ok=False, found=found, remedy=f"{remedy} (server.mounts)")
    kept = [source for source, target in spec.mounts if source == target]
    for folder in dict.fromkeys((*spec.folders, *kept)):
        if not Path(folder).exists():
            continue
        done = engine_run("shifter", image, "test", "-d", folder)
        if done.returncode == 0:
            yield Finding(what="in the container", ok=True, found=folder)
        else:
            remedy = "put it on a file system that the site shows in every container, as scratch is"
            why = f": {done.complaint}" if done.stderr.strip() else ""
            yield Finding(what="in the container", ok=False, found=f"{folder} is not seen there{why}", remedy=remedy)
