"""The labels that lie in a folder, of either format: which events have any, and what they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.whole_numbers import Whole
from exatrkx_hpc.work.events.source import event_key, read_foreign_labels
from exatrkx_hpc.work.results.parts import event_of, events_of, read_part

#: Parts in memory: workers fill theirs side by side, so events that follow each other lie in several.
_HELD: Final = 16


class FoundLabels:
    """The labels in a folder; `names` has the file of each event that has any, in natural order."""

    def __init__(self, folder: Path) -> None:
        """Look which events have labels; raises InputError when a part cannot be read, or an event is in two files."""
        found: dict[str, Path] = {}
        for entry in _entries(folder):
            path = Path(entry.path)
            if event_of(entry.name) is not None:
                names = events_of(path)
            elif entry.name.endswith(".csv") and entry.name[0] != "." and entry.is_file():
                names = [entry.name.removesuffix(".csv")]
            else:
                continue
            for name in names:
                if name in found:
                    raise InputError(f"{name} has labels in {found[name]} and in {path}; remove the wrong ones")
                found[name] = path
        self.names: Mapping[str, Path] = {name: found[name] for name in sorted(found, key=event_key)}
        self._held: dict[Path, Mapping[str, Whole]] = {}

    def read(self, name: str) -> Whole:
        """Return the labels of an event, int64 or uint64 `[N]`, all exact; InputError for a file that is none."""
        path = self.names[name]
        if event_of(path.name) is None:
            return read_foreign_labels(path)
        part = self._held.pop(path, None)
        if part is None:
            part = read_part(path)
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
        self._held[path] = part
        if name not in part:
            raise InputError(f"{path} has changed: {name} is no longer in it; run it again when nobody writes to it")
        return part[name]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
