"""Find the Triton server of the `local` extra, and prepare a folder layout with which it starts.

The wheel `nvidia-pytriton` contains a complete `tritonserver` with its Python backend. The wheel stays unchanged: a
work folder contains links to the files that Triton needs in one folder.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import sys
import sysconfig
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.files import odd_characters

_INSTALL = "pip install 'exatrkx-hpc[local]'"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True)
class EmbeddedTriton:
    """The paths of the embedded Triton, and its environment.

    `environment` contains only the variables to add to, or replace in, the environment of this process.
    """

    server: Path
    backend_directory: Path
    cache_directory: Path
    environment: Mapping[str, str]


def embedded_triton(work_dir: Path, *, lay_out: bool = True) -> EmbeddedTriton:
    """Return the embedded Triton, with its backends laid out under `work_dir`; safe to repeat.

    Without `lay_out`, nothing is written; the paths are those of a later layout.

    The models run in this Python, which therefore needs numpy, scipy and torch; PYTHONPATH lets them import this
    package. Raises MissingComponent if the wheel, its stub for this Python version, `python3`, or the shared library of
    this Python is missing; LaunchError if Triton does not support the name of `work_dir`.
    """
    if odd := odd_characters(work_dir.absolute()):
        raise LaunchError(
            f"run_root {work_dir.parent} contains {odd!r}, which Triton's Python backend does not support; "
            "choose one without spaces, quotes and other special characters of the shell"
        )
    root = _wheel_root()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        raise MissingComponent(f"the embedded Triton does not support Python {version}; use Python 3.10 to 3.13")
    work_dir = work_dir.resolve()
    if lay_out:
        _lay_out_backend(work_dir / "backends" / "python", root / "backends" / "python", stub)
    return EmbeddedTriton(
        server=root / "bin" / "tritonserver",
        backend_directory=work_dir / "backends",
        cache_directory=root / "caches",
        environment=_environment(work_dir / "lib", version, lay_out=lay_out),
    )


def _lay_out_backend(folder: Path, shipped: Path, stub: Path) -> None:
    for part in (shipped / "libtriton_python.so", stub):
        _link(folder / part.name, part)
    # Python writes the byte code into this folder, not into the wheel, although the file is a link.
    utilities = "triton_python_backend_utils.py"
    _link(folder / utilities, shipped / utilities)


def _wheel_root() -> Path:
    spec = importlib.util.find_spec("pytriton")
    for place in (spec.submodule_search_locations or []) if spec else []:
        root = Path(place) / "tritonserver"
        if os.access(root / "bin" / "tritonserver", os.X_OK):
            return root.resolve()
    raise MissingComponent(f"the embedded Triton is not installed; {_INSTALL}")


def _environment(library_folder: Path, version: str, *, lay_out: bool) -> dict[str, str]:
    # The stub starts the first `python3` on PATH, which must have torch and scipy.
    python_folder = Path(sys.executable).parent
    if not (python_folder / "python3").exists():
        raise MissingComponent(f"{python_folder} has no python3, which Triton's models need; {_INSTALL} in a venv")
    environment = {
        "PATH": _first(str(python_folder), "PATH", os.defpath),
        "PYTHONPATH": _first(str(package_parent()), "PYTHONPATH", ""),
    }
    if _put_libpython(library_folder, version, lay_out=lay_out):
        environment["LD_LIBRARY_PATH"] = _first(str(library_folder), "LD_LIBRARY_PATH", "")
    return environment


def _first(value: str, variable: str, default: str) -> str:
    rest = os.environ.get(variable, default)
    return f"{value}{os.pathsep}{rest}" if rest else value


def _put_libpython(folder: Path, version: str, *, lay_out: bool) -> bool:
    """Link this Python's shared library into `folder`; return False if the system's loader finds it already."""
    name = f"libpython{version}.so.1.0"
    beside = Path(str(sysconfig.get_config_var("LIBDIR"))) / name
    if beside.is_file():
        # Link only this library: conda's whole LIBDIR on LD_LIBRARY_PATH would shadow other libraries of the wheel.
        if lay_out:
            _link(folder / name, beside)
        return True
    if ctypes.util.find_library(f"python{version}") == name:
        return False
    raise MissingComponent(
        f"{name} is not on this machine, and Triton's Python models need it; "
        f"install it (Debian: apt-get install libpython{version}), or use a Python built with --enable-shared"
    )


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
    try:
        aside.symlink_to(target)
        aside.replace(link)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
