"""Checks of the container engine: its programs, the server settings, the image and the mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding, asked, refused
from exatrkx_hpc.launch.engines.base import Trial
from exatrkx_hpc.launch.engines.common import ask
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.engines.table import engine_of
from exatrkx_hpc.launch.images import find_image
from exatrkx_hpc.launch.plan import Tool, container_spec


def engine_findings(farm: Farm) -> Iterator[Finding]:
    """Yield the findings on the engine of `farm`; omit checks that need a missing program or image."""
    engine = engine_of(farm)
    spec = container_spec(farm, Tool(triton=farm.server.triton))
    faults = [refused("server settings", fault) for fault in engine.faults(spec)]
    yield from faults
    if not engine.has_container:
        return
    remedy = f"load its module, or choose another server.engine than {farm.server.engine!r}"
    programs = [asked("engine", lambda name=name: find_program(name, remedy=remedy)) for name in engine.programs]  # type: ignore[misc]
    yield from programs
    image = None
    if all(finding.ok for finding in programs) and not faults:
        image = asked("image", lambda: find_image(farm))
        yield image
    yield from _sources(spec)
    if image is not None and image.ok:
        yield from map(_tried, engine.trials(spec))


def _sources(spec: ContainerSpec) -> Iterator[Finding]:
    for source, target in spec.mounts:
        found = f"{source} as {target}"
        if Path(source).exists():
            yield Finding(what="mount", ok=True, found=found)
        else:
            remedy = "create it, or remove it from server.mounts"
            yield Finding(what="mount", ok=False, found=f"{found}: it does not exist", remedy=remedy)


def _tried(trial: Trial) -> Finding:
    done = ask(trial.command)
    if done.returncode == 0:
        return Finding(what="in the container", ok=True, found=trial.found)
    return refused("in the container", trial.refusal(done))
