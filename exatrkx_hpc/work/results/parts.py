"""Labels of many events in one Parquet file: OUT/labels/part-EVENT.labels.parquet, named after its first event.

A row is an event: `event` (string) and `labels` (list of int64, in the order of the hits). An event is in one part
alone, so no two parts have a name in common, and what a killed worker left is found by the names of its events.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import InputError, OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.whole_numbers import Whole
from exatrkx_hpc.work.events.parquet_files import opened, told

if TYPE_CHECKING:
    from pyarrow import DataType, Table

Labels = NDArray[np.int64]

EVENTS: Final = 1000
"""Events after which a part is written."""

HITS: Final = 2_000_000
"""Hits after which it is written, too: 16 MB of labels."""

SECONDS: Final = 10.0
"""Seconds that a result waits for its part at the longest."""

_NAME: Final = re.compile(r"part-(.+)\.labels\.parquet", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that is on disk: its first `event`, how many `events` it has, its size and digest (hexadecimal)."""

    event: str
    events: int
    size: int
    sha256: str


def part_file(event: str) -> str:
    """Return the name of the part whose first event this is."""
    return f"part-{event}.labels.parquet"


def event_of(file: str) -> str | None:
    """Return the first event of the part with this file name; None for another file."""
    found = _NAME.fullmatch(file)
    return found[1] if found else None


def part_bytes(labels: Sequence[tuple[str, Labels]]) -> bytes:
    """Return a part of these events, as bytes."""
    import pyarrow
    from pyarrow import parquet

    # A name from a file system need not be UTF-8; a string in Parquet must be.
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name, _ in labels]
    ends = np.cumsum([0, *(len(values) for _, values in labels)], dtype=np.int32)
    flat = np.concatenate([values for _, values in labels])
    lists = pyarrow.ListArray.from_arrays(ends, flat)
    table = pyarrow.table({"event": pyarrow.array(names, pyarrow.string()), "labels": lists})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def read_part(path: Path) -> Mapping[str, Whole]:
    """Return the labels of each event of a part, `[N]`, int64 as this project writes them, or uint64.

    Raises InputError when it cannot be read, or is not as a part is.
    """
    table = _read(path, ["event", "labels"])
    if not table.num_rows:
        return {}
    with told(path):
        lists, names = table.column("labels").chunk(0), table.column("event").to_pylist()
        lists.validate(full=True)
        values = lists.values
        if lists.null_count or values.null_count or None in names:
            raise InputError(f"{path} has an event without a name or labels; write it again")
        ends, numbers = lists.offsets.to_numpy(), values.to_numpy()
    wide = np.uint64 if numbers.dtype == np.uint64 else np.int64
    labels = numbers.astype(wide, copy=False)
    return {name: labels[ends[row] : ends[row + 1]] for row, name in enumerate(names)}


def events_of(path: Path) -> list[str]:
    """Return the names of the events in a part; raises InputError when it cannot be read."""
    with told(path):
        names: list[str | None] = _read(path, ["event"]).column("event").to_pylist()
    if None in names:
        raise InputError(f"{path} has an event without a name; write it again")
    return [name for name in names if name is not None]


def _read(path: Path, columns: list[str]) -> Table:
    with opened(path) as file, told(path):
        schema = file.schema_arrow
        if schema.names != ["event", "labels"]:
            held = ", ".join(schema.names)
            raise InputError(f"{path} is no part of labels (it has: {held[:80]}); move it elsewhere")
        _require_whole(path, schema.field("event").type, schema.field("labels").type)
        return file.read(columns=columns, use_threads=False).combine_chunks()


def _require_whole(path: Path, names: DataType, labels: DataType) -> None:
    """Raise InputError unless names are text, and labels lists of whole numbers: others are not exact, or no labels."""
    from pyarrow import types

    text = types.is_string(names) or types.is_large_string(names)
    lists = types.is_list(labels) or types.is_large_list(labels)
    if not text or not lists or not types.is_integer(labels.value_type):
        raise InputError(f"{path}: events are {names} and labels {labels}; string and list of int64 are wanted")


class PartWriter:
    """Collects the labels of a worker, and writes them as parts."""

    def __init__(self, folder: Path, *, events: int, say: Callable[[Part], None]) -> None:
        """Write to `folder` after so many events; `say` is called with each part that is on disk."""
        self._folder, self._events, self._say = folder, events, say
        self._collected: list[tuple[str, Labels]] = []
        self._hits = 0
        self._since = 0.0
        self._lock = asyncio.Lock()
        self._parent = os.getppid()

    def add(self, name: str, labels: Labels) -> None:
        """Collect the labels of an event; parts take them in this order."""
        if not self._collected:
            self._since = time.monotonic()
        self._collected.append((name, labels))
        self._hits += len(labels)

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        late = bool(self._collected) and time.monotonic() - self._since >= SECONDS
        return late or len(self._collected) >= self._events or self._hits >= HITS

    async def write_if_due(self) -> None:
        """Write a part if it is time to: who brings more while one is written waits for it, so memory is bounded."""
        if self.due:
            await self._shielded(lambda: self.due)

    async def write(self) -> None:
        """Write what is collected; raises OutputError when it cannot be written."""
        await self._shielded(lambda: True)

    async def _shielded(self, wanted: Callable[[], bool]) -> None:
        # Who waits may be cancelled; a part that is on disk must still be told.
        await asyncio.shield(asyncio.create_task(self._write(wanted)))

    async def _write(self, wanted: Callable[[], bool]) -> None:
        async with self._lock:
            while self._collected and wanted():
                batch, self._collected = self._collected[: self._events], self._collected[self._events :]
                self._hits = sum(len(labels) for _, labels in self._collected)
                part = await asyncio.to_thread(self._write_part, batch)
                if part is not None:
                    self._say(part)

    def _write_part(self, batch: Sequence[tuple[str, Labels]]) -> Part | None:
        data = part_bytes(batch)
        path = self._folder / part_file(batch[0][0])
        if os.getppid() != self._parent:  # nobody would note it, and the next run may be at these events already
            return None
        try:
            write_whole(path, data)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; make room there, or choose another folder with -o"
            ) from error
        return Part(event=batch[0][0], events=len(batch), size=len(data), sha256=hashlib.sha256(data).hexdigest())
