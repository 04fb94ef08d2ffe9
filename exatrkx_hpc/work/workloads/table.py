"""Find workloads by name: the shipped workloads and those in the user's folder."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.work.workloads.base import Workload

DEFAULT: Final = "exatrkx"

#: The module of each shipped workload; imported on first use.
SHIPPED: Final = {
    "exatrkx": "exatrkx_hpc.work.workloads.exatrkx",
    "echo": "exatrkx_hpc.work.workloads.echo",
    "traccc": "exatrkx_hpc.work.workloads.traccc",
    "traccc-gpu": "exatrkx_hpc.work.workloads.traccc_gpu",
}


def names(folder: str = "") -> tuple[str, ...]:
    """Return the names of all workloads, including those in `folder`."""
    return tuple(sorted({*SHIPPED, *_own(folder)}))


@functools.cache
def workload(name: str = DEFAULT, folder: str = "") -> Workload:
    """Return a workload by its name, from `NAME.py` in `folder` or from the shipped workloads.

    Raises ConfigError for an unknown name or a module without a valid workload.
    """
    own = _own(folder)
    if name in own:
        return _loaded(own[name])
    if name in SHIPPED:
        found: Workload = importlib.import_module(SHIPPED[name]).WORKLOAD
        return found
    near = difflib.get_close_matches(name, names(folder), n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    where = f"; your own are read from clients.workloads = {folder!r}" if folder else ""
    raise ConfigError(f"unknown workload {name!r}; known: {', '.join(names(folder))}{meant}{where}")


def workload_of(model: str, *, default: str = DEFAULT, folder: str = "") -> Workload:
    """Return the workload that lists `model`; the workload named `default` if none does."""
    known = workload(default, folder)
    if not model or model in (known.model, *known.also):
        return known
    for name in names(folder):
        found = workload(name, folder)
        if model in (found.model, *found.also):
            return found
    return known


def _own(folder: str) -> dict[str, Path]:
    """Return the modules in the user's folder by name; raises ConfigError if the folder does not exist."""
    if not folder:
        return {}
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(
            f"clients.workloads: folder {folder} does not exist; it must contain one NAME.py per workload"
        )
    return {file.stem: file for file in sorted(path.glob("*.py")) if not file.name.startswith(("_", "."))}


def _loaded(file: Path) -> Workload:
    spec = importlib.util.spec_from_file_location(f"exatrkx_workload_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, "WORKLOAD", None)
    if not isinstance(found, Workload):
        raise ConfigError(f"{file} has no WORKLOAD that is a Workload; take work/workloads/echo.py as a template")
    if found.name != file.stem:
        raise ConfigError(f"{file} defines the workload {found.name!r}; rename the file to {found.name}.py")
    return found
