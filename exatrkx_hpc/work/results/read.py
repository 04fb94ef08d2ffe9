"""Read the results of a folder, from single files or parts: which events have results, and their content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.results.parts import event_of, events_of, read_part
from exatrkx_hpc.work.workloads.base import Tensors, Workload

#: Parts in memory: workers fill parts concurrently, so consecutive events are in several parts.
_HELD: Final = 16


def read_result(workload: Workload, path: Path) -> Tensors:
    """Return the outputs in the result file of one event; raises InputError when the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return workload.decode(path, data)


class FoundResults:
    """The results in a folder; `names` maps each event with a result to its file, in natural order."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        """List the events with results; raises InputError when a part cannot be read or an event is in two files."""
        self._workload = workload
        found: dict[str, Path] = {}
        for entry in _entries(folder):
            path = Path(entry.path)
            if event_of(workload, entry.name) is not None:
                names = events_of(workload, path)
            elif entry.name.endswith(workload.suffix) and entry.name[0] != "." and entry.is_file():
                names = [entry.name.removesuffix(workload.suffix)]
            else:
                continue
            for name in names:
                if name in found:
                    what = f"{name} has {workload.folder} in {found[name]} and in {path}"
                    raise InputError(f"{what}; remove the wrong ones")
                found[name] = path
        self.names: Mapping[str, Path] = {name: found[name] for name in sorted(found, key=event_key)}
        self._held: dict[Path, Mapping[str, Tensors]] = {}

    def read(self, name: str) -> Tensors:
        """Return the outputs of an event; raises InputError when its file cannot be read or no longer has the event."""
        path = self.names[name]
        if event_of(self._workload, path.name) is None:
            return read_result(self._workload, path)
        part = self._held.pop(path, None)
        if part is None:
            part = read_part(self._workload, path)
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
        self._held[path] = part
        if name not in part:
            raise InputError(
                f"{path} has changed: {name} is no longer in it; run again when no program writes to the file"
            )
        return part[name]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
