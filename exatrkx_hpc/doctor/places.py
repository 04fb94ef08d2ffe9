"""Checks of the farm's folders: run root and model repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.launch.plan import container_places
from exatrkx_hpc.launch.run_dirs import of_this_machine
from exatrkx_hpc.launch.schedulers import abilities_of


def place_findings(farm: Farm) -> Iterator[Finding]:
    """Yield findings: whether the run root is writable, whether the nodes share it, whether the models will load."""
    run_root = Path(farm.run_root)
    yield _run_root(run_root)
    if abilities_of(farm).other_machines:
        yield _shared(run_root)
    yield _models(Path(farm.server.model_repository), farm)
    if farm.server.python_environment:
        yield _packages(Path(farm.server.python_environment))


def _run_root(run_root: Path) -> Finding:
    existing = _existing(run_root)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = "choose a folder that you may write to, on a file system that the nodes share"
        return Finding(what="run root", ok=False, found=f"{existing}: {error.strerror}", remedy=f"{remedy} (run_root)")
    free = shutil.disk_usage(existing).free / 2**30
    note = "" if run_root.exists() else ", created by the first deploy"
    return Finding(what="run root", ok=True, found=f"{run_root}{note}, {free:.0f} GiB free")


def _shared(run_root: Path) -> Finding:
    if why := of_this_machine(run_root):
        remedy = "set run_root to a folder on the file system that login node and nodes share"
        return Finding(what="run root shared", ok=False, found=f"{run_root} {why}", remedy=remedy)
    return Finding(what="run root shared", ok=True, found="no sign of a local file system")


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _models(repository: Path, farm: Farm) -> Finding:
    if not repository.is_dir() and abilities_of(farm).builds_models:
        return Finding(what="models", ok=True, found=f"{repository} is created by the first deploy")
    if not repository.is_dir():
        remedy = f"exatrkx-hpc models build --device {farm.server.device} --out {repository}"
        remedy = "exatrkx-hpc setup" if farm.server.python_environment else remedy
        return Finding(what="models", ok=False, found=f"{repository} does not exist", remedy=remedy)
    try:
        from exatrkx_hpc.models.check import check

        faults = check(repository, places=container_places(farm))
    except ExatrkxError as error:
        return Finding(what="models", ok=False, found=str(error), remedy="build the repository again")
    if faults:
        first = faults[0]
        return Finding(what="models", ok=False, found=f"{first.model}: {first.what}", remedy=first.remedy)
    return Finding(what="models", ok=True, found=str(repository))


def _packages(place: Path) -> Finding:
    """Warn about missing packages: models may find them in the image; models that need them fail their own check."""
    if place.is_dir():
        return Finding(what="models' packages", ok=True, found=str(place))
    remedy = "exatrkx-hpc setup fetches them for the image, if it lacks them"
    return Finding(what="models' packages", ok=True, found=f"{place} does not exist", remedy=remedy)
