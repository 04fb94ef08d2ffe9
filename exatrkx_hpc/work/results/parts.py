"""Results of many events in one Parquet file: OUT/labels/part-EVENT.labels.parquet, named after its first event.

Each row is an event: `event` (string), and for each output of the workload a list of its values, in row-major order. If
the workload has rows of its own, such as tracks, a part is as `rows.py` says. An event is in only one part, so part
names are unique, and the files of a killed worker are found by the names of its events.
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

from exatrkx_hpc.base.errors import ConfigError, InputError, OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.events.parquet_files import opened, parquet_errors
from exatrkx_hpc.work.results.rows import events_of_rows, read_rows, require_rows, rows_table
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload

if TYPE_CHECKING:
    from pyarrow import DataType, ListArray, Schema, Table

EVENTS: Final = 1000
"""Number of collected events after which a part is written."""

BYTES: Final = 16_000_000
"""Bytes of collected results after which a part is written."""

SECONDS: Final = 10.0
"""Maximum seconds that a result waits for its part."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part on disk: its first `event`, its number of `events`, its size in bytes and its digest (hexadecimal)."""

    event: str
    events: int
    size: int
    sha256: str


def part_suffix(workload: Workload) -> str:
    """Return the suffix of part names."""
    return f".{workload.folder}.parquet"


def require_parts(workload: Workload) -> None:
    """Raise ConfigError unless a part can store the results: one list of numbers per output, one free axis at most."""
    if workload.rows:
        return
    for spec in workload.outputs:
        free = sum(isinstance(axis, str) for axis in spec.shape)
        if free > 1 or np.dtype(spec.dtype).kind not in "iuf" or spec.name == "event":
            raise ConfigError(
                f"{spec.name} ({spec.shown}) of workload {workload.name} cannot be stored in Parquet; omit "
                "--labels parquet"
            )


def part_file(workload: Workload, event: str) -> str:
    """Return the name of the part that begins with this event."""
    return f"part-{event}{part_suffix(workload)}"


def event_of(workload: Workload, file: str) -> str | None:
    """Return the first event of the part with this file name; None for another file."""
    found = re.fullmatch(rf"part-(.+){re.escape(part_suffix(workload))}", file, re.DOTALL)
    return found[1] if found else None


def part_bytes(workload: Workload, results: Sequence[tuple[str, Tensors]]) -> bytes:
    """Return a part with these results, as bytes."""
    import pyarrow
    from pyarrow import parquet

    # A string in Parquet must be UTF-8; a file name need not be.
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name, _ in results]
    if workload.rows:
        table = rows_table(workload, names, [outputs for _, outputs in results])
    else:
        columns = {spec.name: _lists([outputs[spec.name] for _, outputs in results]) for spec in workload.outputs}
        table = pyarrow.table({"event": pyarrow.array(names, pyarrow.string()), **columns})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _lists(arrays: Sequence[Array]) -> ListArray:
    import pyarrow

    ends = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(ends, np.concatenate([array.reshape(-1) for array in arrays]))


def read_part(workload: Workload, path: Path) -> Mapping[str, Tensors]:
    """Return the outputs of each event in a part; integers are int64, or uint64 if the file has uint64.

    Raises InputError when the part cannot be read or has another structure.
    """
    table = _read(workload, path, _columns(workload))
    if workload.rows:
        with parquet_errors(path):
            return read_rows(workload, table, path)
    if not table.num_rows:
        return {}
    with parquet_errors(path):
        names = table.column("event").to_pylist()
        columns = {spec: table.column(spec.name).chunk(0) for spec in workload.outputs}
        for lists in columns.values():
            lists.validate(full=True)
            if lists.null_count or lists.values.null_count or None in names:
                raise InputError(f"{path} has an event without a name or {workload.folder}; write it again")
    found: dict[str, dict[str, Array]] = {name: {} for name in names}
    for spec, lists in columns.items():
        ends, values = lists.offsets.to_numpy(), _widened(lists.values.to_numpy())
        for row, name in enumerate(names):
            found[name][spec.name] = _shaped(spec, values[ends[row] : ends[row + 1]], path)
    return found


def _widened(values: Array) -> Array:
    """Return integers as 64 bits, other values unchanged."""
    if values.dtype.kind not in "iu":
        return values
    return values.astype(np.uint64 if values.dtype == np.uint64 else np.int64, copy=False)


def _shaped(spec: Tensor, values: Array, path: Path) -> Array:
    try:
        return values.reshape([axis if isinstance(axis, int) else -1 for axis in spec.shape])
    except ValueError as error:
        raise InputError(f"{path} has {values.size} values of {spec.name} for an event, not {spec.shown}") from error


def events_of(workload: Workload, path: Path) -> list[str]:
    """Return the names of the events in a part; raises InputError when the part cannot be read."""
    with parquet_errors(path):
        if workload.rows:
            return list(events_of_rows(_read(workload, path, ["event"]).schema, path))
        names: list[str | None] = _read(workload, path, ["event"]).column("event").to_pylist()
    if None in names:
        raise InputError(f"{path} has an event without a name; write it again")
    return [name for name in names if name is not None]


def _columns(workload: Workload) -> list[str]:
    return ["event", *(spec.name for spec in workload.outputs)]


def _read(workload: Workload, path: Path, columns: list[str]) -> Table:
    with opened(path) as file, parquet_errors(path):
        schema = file.schema_arrow
        if schema.names != _columns(workload):
            held = ", ".join(schema.names)
            raise InputError(
                f"{path} is not a Parquet file of {workload.folder} (it has: {held[:80]}); move it elsewhere"
            )
        if workload.rows:
            require_rows(workload, schema, path)
        else:
            _require_types(workload, path, schema)
        return file.read(columns=columns, use_threads=False).combine_chunks()


def _require_types(workload: Workload, path: Path, schema: Schema) -> None:
    """Raise InputError unless the names are strings and the outputs are lists of the workload's kind of number."""
    from pyarrow import types

    names = schema.field("event").type
    good = types.is_string(names) or types.is_large_string(names)
    for spec in workload.outputs:
        found = schema.field(spec.name).type
        if not good or not _is_list_of(spec, found):
            raise InputError(
                f"{path}: events are {names} and {spec.name} {found}; expected string and list of {spec.dtype}"
            )


def _is_list_of(spec: Tensor, found: DataType) -> bool:
    from pyarrow import types

    if not (types.is_list(found) or types.is_large_list(found)):
        return False
    wanted = types.is_integer if np.dtype(spec.dtype).kind in "iu" else types.is_floating
    return bool(wanted(found.value_type))


class PartWriter:
    """Collects the results of a worker and writes them as parts."""

    def __init__(self, folder: Path, workload: Workload, *, events: int, say: Callable[[Part], None]) -> None:
        """Write a part to `folder` after `events` events; `say` is called with each part on disk."""
        self._folder, self._workload, self._events, self._say = folder, workload, events, say
        self._collected: list[tuple[str, Tensors]] = []
        self._bytes = 0
        self._since = 0.0
        self._lock = asyncio.Lock()
        self._parent = os.getppid()

    def add(self, name: str, outputs: Tensors) -> None:
        """Collect the outputs of an event; parts keep this order."""
        if not self._collected:
            self._since = time.monotonic()
        self._collected.append((name, outputs))
        self._bytes += _size(outputs)

    @property
    def due(self) -> bool:
        """Whether a part must be written now."""
        late = bool(self._collected) and time.monotonic() - self._since >= SECONDS
        return late or len(self._collected) >= self._events or self._bytes >= BYTES

    async def write_if_due(self) -> None:
        """Write a part if one is due; callers wait while a part is written, which bounds the memory."""
        if self.due:
            await self._shielded(lambda: self.due)

    async def write(self) -> None:
        """Write all collected results; raises OutputError when they cannot be written."""
        await self._shielded(lambda: True)

    async def _shielded(self, wanted: Callable[[], bool]) -> None:
        # The caller may be cancelled, but each part on disk must be reported.
        await asyncio.shield(asyncio.create_task(self._write(wanted)))

    async def _write(self, wanted: Callable[[], bool]) -> None:
        async with self._lock:
            while self._collected and wanted():
                batch, self._collected = self._collected[: self._events], self._collected[self._events :]
                self._bytes = sum(_size(outputs) for _, outputs in self._collected)
                part = await asyncio.to_thread(self._write_part, batch)
                if part is not None:
                    self._say(part)

    def _write_part(self, batch: Sequence[tuple[str, Tensors]]) -> Part | None:
        data = part_bytes(self._workload, batch)
        path = self._folder / part_file(self._workload, batch[0][0])
        if os.getppid() != self._parent:  # the coordinator is gone, and the next run may already do these events
            return None
        try:
            write_whole(path, data)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; check permissions and free space, or choose another folder "
                "with -o"
            ) from error
        return Part(event=batch[0][0], events=len(batch), size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _size(outputs: Tensors) -> int:
    return sum(array.nbytes for array in outputs.values())
