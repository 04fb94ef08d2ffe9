"""Events out of Parquet files, by their rows: the last file stays open, and its last row groups in memory."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from exatrkx_hpc.work.events.numpy_files import checked_hits
from exatrkx_hpc.work.events.parquet_files import HITS, opened, told
from exatrkx_hpc.work.events.values import COLUMNS, EventFile, EventInput, Float32, Rows, UnreadableEvent

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

#: Row groups that are held: an event may begin in one and end in the next.
_HELD: Final = 2


class ParquetReader:
    """Reads events for any thread, one at a time."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._lock = threading.Lock()
        self._closing = contextlib.ExitStack()
        self._open: _OpenFile | None = None

    def close(self) -> None:
        """Close the file that is open, and forget its row groups."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._open = None
        self._closing.close()

    def read(self, event: EventFile, rows: Rows) -> EventInput:
        """Return the content of the event in these rows of its file.

        Raises UnreadableEvent when the file cannot be read, or is not as it was when the rows were found;
        InputError for a torn file and for hits that are not finite.
        """
        with self._lock:
            _require_unchanged(event.path, rows)
            if self._open is None or (self._open.path, self._open.mtime_ns) != (event.path, rows.mtime_ns):
                self._close()
                parquet = self._closing.enter_context(opened(event.path))
                with told(event.path):
                    self._open = _OpenFile(event.path, rows.mtime_ns, parquet)
            values = self._open.rows(rows.first, rows.number)
            _require_unchanged(event.path, rows)  # now what was read is known to be of that time
        hits = checked_hits(values, f"{event.path}: event {event.name}")
        digest = hashlib.sha256(hits.astype("<f4", copy=False).tobytes()).hexdigest()
        return EventInput(hits=hits, size=len(hits), mtime_ns=rows.mtime_ns, sha256=digest)


class _OpenFile:
    """An open file, where its row groups begin, and the last ones that were read."""

    def __init__(self, path: Path, mtime_ns: int, parquet: ParquetFile) -> None:
        self.path, self.mtime_ns = path, mtime_ns
        self._parquet = parquet
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._groups: dict[int, Float32] = {}

    def rows(self, first: int, number: int) -> Float32:
        """Return these rows, float32 `[number, 3]`, a copy."""
        hits, done = np.empty((number, COLUMNS), dtype=np.float32), 0
        while done < number:
            group = int(np.searchsorted(self._ends, first + done, side="right"))
            if group == len(self._ends):
                raise _changed(self.path)
            values = self._group(group)
            part = values[first + done - (int(self._ends[group]) - len(values)) :][: number - done]
            hits[done : done + len(part)] = part
            done += len(part)
        return hits

    def _group(self, number: int) -> Float32:
        held = self._groups.pop(number, None)
        if held is None:
            while len(self._groups) >= _HELD:
                del self._groups[next(iter(self._groups))]
            with told(self.path):
                table = self._parquet.read_row_group(number, columns=list(HITS), use_threads=False)
                held = np.empty((table.num_rows, COLUMNS), dtype=np.float32)
                with np.errstate(over="ignore"):  # becomes an infinity, which its event is refused for
                    for column, name in enumerate(HITS):
                        held[:, column] = table.column(name).to_numpy()
        self._groups[number] = held  # the one that was used last is at the end
        return held


def _require_unchanged(path: Path, rows: Rows) -> None:
    try:
        now = path.stat().st_mtime_ns
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if now != rows.mtime_ns:
        raise _changed(path)


def _changed(path: Path) -> UnreadableEvent:
    return UnreadableEvent(f"{path} changed since the run began; run it again when nobody writes to it")
