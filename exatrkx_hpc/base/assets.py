"""Paths of the shipped folders: next to the package in a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

from exatrkx_hpc.base.errors import MissingComponent

_PACKAGE = Path(__file__).resolve().parent.parent


def asset(name: str) -> Path:
    """Return the path of a shipped file or folder, such as `jobs/farm.sbatch.j2`.

    Raises MissingComponent when it is in neither place.
    """
    for root in (_PACKAGE / "_assets", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise MissingComponent(f"{name} is not part of this installation; reinstall exatrkx-hpc")


def package_parent() -> Path:
    """Return the folder that holds the package: what PYTHONPATH needs for `import exatrkx_hpc`."""
    return _PACKAGE.parent
