"""Follow files that grow: their new text, in order, whatever a read cuts in two."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Final

_PIECE: Final = 1 << 20
"""Bytes of one read: a log that grows faster than it is read must not fill the memory."""


class Follower:
    """Reads what one file gained since the last read. Places are bytes, because a text may not be valid UTF-8."""

    def __init__(self, path: Path, *, place: int = 0) -> None:
        """Start at byte `place`; the file may be missing for now."""
        self.path = path
        self._place = place
        self._inode: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self) -> str:
        """Return the new text, at most 1 MiB; "" without any, or while the file is missing or cannot be read.

        Half of a character waits for its other half. A file that was truncated or replaced is read from its start.
        """
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size < self._place or (self._inode is not None and found.st_ino != self._inode):
                    self._place = 0
                    self._decoder.reset()
                self._inode = found.st_ino
                file.seek(self._place)
                data = file.read(_PIECE)
        except OSError:
            return ""
        self._place += len(data)
        return self._decoder.decode(data)
