"""Read events from Parquet files by row; the last file stays open and its last row groups stay in memory."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.parquet_files import opened, parquet_errors
from exatrkx_hpc.work.events.values import EventFile, EventInput, Rows, UnreadableEvent
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload
from exatrkx_hpc.work.workloads.given import as_tensors

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

#: Row groups in memory: an event may begin in one and end in the next.
_HELD: Final = 2


class ParquetReader:
    """Reads one event at a time; thread-safe."""

    def __init__(self, workload: Workload) -> None:
        """Open no file yet."""
        self._workload = workload
        self._lock = threading.Lock()
        self._closing = contextlib.ExitStack()
        self._open: _OpenFile | None = None

    def close(self) -> None:
        """Close the open file and drop its row groups."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._open = None
        self._closing.close()

    def read(self, event: EventFile, rows: Rows) -> EventInput:
        """Return the content of the event in these rows of its file.

        Raises UnreadableEvent when the file cannot be read or changed after it was indexed; InputError for a damaged
        file and for content that is not an event of the workload.
        """
        with self._lock:
            _require_unchanged(event.path, rows)
            if self._open is None or (self._open.path, self._open.mtime_ns) != (event.path, rows.mtime_ns):
                self._close()
                parquet = self._closing.enter_context(opened(event.path))
                with parquet_errors(event.path):
                    self._open = _OpenFile(event.path, rows.mtime_ns, parquet, self._workload)
            values = self._open.rows(rows.first, rows.number)
            _require_unchanged(event.path, rows)  # again: the file may change while it is read
        try:
            tensors = as_tensors(self._workload, values)
        except InputError as error:
            raise InputError(f"{event.path}: event {event.name}: {error}") from error
        return EventInput(tensors=tensors, size=rows.number, mtime_ns=rows.mtime_ns, sha256=_digest(tensors))


def _digest(tensors: Tensors) -> str:
    whole = hashlib.sha256()
    for array in tensors.values():
        whole.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return whole.hexdigest()


class _OpenFile:
    """An open file, the ends of its row groups, and the last row groups read."""

    def __init__(self, path: Path, mtime_ns: int, parquet: ParquetFile, workload: Workload) -> None:
        self.path, self.mtime_ns = path, mtime_ns
        self._parquet, self._inputs = parquet, workload.inputs
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._groups: dict[int, Tensors] = {}

    def rows(self, first: int, number: int) -> Tensors:
        """Return copies of these rows of each input."""
        parts: dict[str, list[Array]] = {spec.name: [_empty(spec, 0)] for spec in self._inputs}
        done = 0
        while done < number:
            group = int(np.searchsorted(self._ends, first + done, side="right"))
            if group == len(self._ends):
                raise _changed(self.path)
            held = self._group(group)
            rows = len(next(iter(held.values())))
            start = first + done - (int(self._ends[group]) - rows)
            stop = min(start + number - done, rows)
            for name, values in held.items():
                parts[name].append(values[start:stop])
            done += stop - start
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _group(self, number: int) -> Tensors:
        held = self._groups.pop(number, None)
        if held is None:
            while len(self._groups) >= _HELD:
                del self._groups[next(iter(self._groups))]
            columns = [name for spec in self._inputs for name in spec.columns]
            with parquet_errors(self.path):
                table = self._parquet.read_row_group(number, columns=columns, use_threads=False)
                held = {spec.name: _filled(spec, table, self.path) for spec in self._inputs}
        self._groups[number] = held  # the last used one is at the end
        return held


def _empty(spec: Tensor, rows: int) -> Array:
    return np.empty((rows, len(spec.columns)) if len(spec.shape) == 2 else rows, dtype=spec.dtype)


def _filled(spec: Tensor, table: Table, path: Path) -> Array:
    """Return the columns of an input side by side, as one array."""
    filled = _empty(spec, table.num_rows)
    with np.errstate(over="ignore"):  # a value that is too large becomes an infinity; the event is then refused
        for place, name in enumerate(spec.columns):
            values = table.column(name)
            if filled.dtype.kind in "iu":
                if values.null_count:
                    raise InputError(f"{path}: the column '{name}' has rows without a value; write it again")
                values = values.cast(str(filled.dtype))  # pyarrow refuses a number that does not fit
            filled[(slice(None), place) if filled.ndim == 2 else slice(None)] = values.to_numpy()
    return filled


def _require_unchanged(path: Path, rows: Rows) -> None:
    try:
        now = path.stat().st_mtime_ns
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if now != rows.mtime_ns:
        raise _changed(path)


def _changed(path: Path) -> UnreadableEvent:
    return UnreadableEvent(f"{path} changed since the run began; run again when no program writes to the file")
