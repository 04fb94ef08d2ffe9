"""What a pretend machine sees of this machine's files, so that an unprivileged user can run this Python in it.

Its /tmp is its own. A folder that others may not enter, such as root's home with an interpreter in it, is
covered by an empty one in which only the kept folders appear, at their own places.
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
    """An empty folder laid over `folder`, with its permissions, and the kept folders that show through."""

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
    """Return the covers under which all of `kept` can be reached by everybody; /tmp is always covered."""
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
