"""The files of this machine that a pretend machine sees, so that an unprivileged user can run this Python in it.

A pretend machine has its own /tmp. If other users may not enter a folder, such as root's home with an interpreter in
it, an empty folder covers it. In the cover only the kept folders appear, at their usual paths.
"""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TMP = Path("/tmp")


@dataclass(frozen=True, kw_only=True)
class Cover:
    """An empty folder with permissions `mode`, mounted over `folder`; the `kept` folders stay visible."""

    folder: Path
    mode: str
    kept: tuple[Path, ...]

    @property
    def words(self) -> list[str]:
        """The cover as arguments of anchor.sh."""
        return [str(self.folder), self.mode, str(len(self.kept)), *map(str, self.kept)]


def python_folders() -> list[Path]:
    """Return the folders that this project's commands need: checkout, virtual environment, interpreter."""
    return list(dict.fromkeys([ROOT, Path(sys.prefix), Path(sys.base_prefix)]))


def covers(kept: list[Path]) -> list[Cover]:
    """Return the covers that let every user reach all of `kept`; /tmp is always covered."""
    closed = {folder for path in kept if (folder := _closed_parent(path)) is not None} | {TMP}
    outer = sorted(folder for folder in closed if not closed & set(folder.parents))
    return [
        Cover(
            folder=folder,
            mode="1777" if folder == TMP else "755",
            kept=tuple(path for path in kept if folder in path.parents),
        )
        for folder in outer
    ]


def _closed_parent(path: Path) -> Path | None:
    """Return the outermost folder above `path` that others may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None
