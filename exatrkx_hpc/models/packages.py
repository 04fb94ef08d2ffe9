"""Find installed Python packages with their requirements, and copy their files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

from exatrkx_hpc.base.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed package: its normalised name, its version, its folder and its files."""

    name: str
    version: str
    folder: Path = field(repr=False)
    files: tuple[PurePosixPath, ...] = field(repr=False)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of its top-level modules."""
        packages = {file.parts[0] for file in self.files if len(file.parts) == 2 and file.name == "__init__.py"}
        return tuple(
            sorted(packages | {file.stem for file in self.files if len(file.parts) == 1 and file.suffix == ".py"})
        )

    def copy(self, target: Path) -> None:
        """Copy the files to `target` with the same relative paths; programs in bin are left out."""
        for file in self.files:
            source, copy = self.folder / file, target / file
            if ".." not in file.parts and source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)  # keeps its modification time, so that its byte code stays valid


def find_packages(folders: Sequence[Path], names: Sequence[str], *, python: Path) -> tuple[Package, ...]:
    """Return the packages `names` and their requirements from an environment's package folders.

    A requirement that is not installed is skipped: it is for another system, or an extra. Raises ModelError when one
    of `names` is missing, or when a package has no file list or is installed as a link to its sources.
    """
    there = {plain_name(one.name): one for one in distributions(path=[str(folder) for folder in reversed(folders)])}
    wanted, chosen = list(names), dict[str, Package]()
    while wanted:
        name = plain_name(wanted.pop())
        if name in chosen:
            continue
        if name in there:
            chosen[name] = _package(there[name])
            wanted += [_name(line) for line in there[name].requires or () if "extra ==" not in line]
        elif name in map(plain_name, names):
            raise ModelError(f"{python} has no {name}; install it with '{python} -m pip install {name}'")
    return tuple(sorted(chosen.values(), key=lambda package: package.name))


def _package(found: Distribution) -> Package:
    name, files = plain_name(found.name), tuple(PurePosixPath(file) for file in found.files or ())
    if not files:
        raise ModelError(f"{name} has no list of its files; reinstall it with pip, then pack")
    if any(file.suffix == ".pth" and "editable" in file.name for file in files):
        raise ModelError(f"{name} is installed as a link to its sources; install it with pip without -e, then pack")
    return Package(name=name, version=found.version, folder=Path(str(found.locate_file(""))), files=files)


def plain_name(name: str) -> str:
    """Return the name of a package as pip compares it: `Typing_Extensions` is `typing-extensions`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(requirement: str) -> str:
    """Return the name at the beginning of a requirement such as `numpy<2; python_version < "3.13"`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0] if match else ""
