"""Find and read events in files of any format.

A source of events is a folder of `*.csv`, `*.npy` or `*.npz` files with one event each, a folder of `*.parquet` files
with many events each, or one such Parquet file. All events of a folder have the same format.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer
from exatrkx_hpc.base.parsing import parse_errors
from exatrkx_hpc.work.events.parquet_files import EVENT, index, require_pyarrow
from exatrkx_hpc.work.events.parquet_reader import ParquetReader
from exatrkx_hpc.work.events.table_files import parse_arrays, parse_csv_table
from exatrkx_hpc.work.events.values import EventFile, EventInput, Rows, Stamp, UnreadableEvent
from exatrkx_hpc.work.workloads.base import Parser, Tensors, Workload
from exatrkx_hpc.work.workloads.table import workload as default_workload

__all__ = ["EVENT", "EventFile", "EventInput", "Rows", "Stamp", "UnreadableEvent"]

CSV: Final = "csv"
PARQUET: Final = "parquet"

_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")
FORMATS: Final = (CSV, "npy", "npz", PARQUET)
"""The event formats, named after the file suffix; a workload may support only some of them."""


def parsers_of(workload: Workload) -> Mapping[str, Parser]:
    """Return the parsers of one-event files, by file suffix."""
    if workload.parsers:
        return workload.parsers
    return {CSV: partial(parse_csv_table, workload), "npz": partial(parse_arrays, workload)}


def find_events(
    source: Path, form: str | None = None, *, column: str = EVENT, workload: Workload | None = None
) -> tuple[EventFile, ...]:
    """Return the events of `source` in natural order (`evt_2` before `evt_10`); `form` selects a format.

    Raises the errors of `format_of` and `scan_events`, and InputError when there is no event or an event is in two
    places.
    """
    form = form or format_of(source)
    keyed = sorted(
        (
            (event_key(stamp.name), place_event(source, form, stamp))
            for stamp in scan_events(source, form, column=column, workload=workload)
        ),
        key=lambda one: one[0],
    )
    if not keyed:
        raise no_events(source)
    for (key, event), (following, _) in itertools.pairwise(keyed):
        if key == following:
            raise scattered_events(source, [event.name])
    return tuple(event for _, event in keyed)


def no_events(source: Path) -> InputError:
    """Return the error for a source without events."""
    kinds = ", ".join(f"*.{form}" for form in FORMATS)
    packed = next((path.name for path in sorted(source.glob("[!.]*.csv.*")) if path.suffix in _PACKED), None)
    if packed:
        return InputError(f"no events ({kinds}) in {source}, but {packed}; unpack such files, for example with gunzip")
    return InputError(f"no events ({kinds}) in {source}; generate some with 'exatrkx-hpc events generate'")


def scattered_events(source: Path, names: list[str]) -> InputError:
    """Return the error for events whose rows are in more than one place of their Parquet files."""
    return InputError(
        f"{source}: the rows of an event are not contiguous ({', '.join(names)}, …); sort the rows by event, in one "
        "file"
    )


def format_of(source: Path) -> str:
    """Return the format of the events of `source`, one of `FORMATS`.

    Raises InputError when the source does not exist, cannot be read, has no event, or has events in several formats;
    MissingComponent for Parquet when pyarrow is not installed.
    """
    found: dict[str, str] = {}
    if _is_parquet_file(source):
        found[PARQUET] = source.name
    else:
        for entry in _files(source):
            found.setdefault(entry.name.rpartition(".")[2], entry.name)
    if not found:
        raise no_events(source)
    if len(found) > 1:
        held = " and ".join(found[form] for form in sorted(found))
        raise InputError(
            f"{source} holds events in several formats ({held}); keep one format and move the other files elsewhere"
        )
    (form,) = found
    if form == PARQUET:
        require_pyarrow()
    return form


def scan_events(source: Path, form: str, *, column: str = EVENT, workload: Workload | None = None) -> Iterator[Stamp]:
    """Yield the events of `source`, unordered, without reading them and without keeping all in memory.

    Events are the files of the format `form` directly in the folder; files in subfolders (`truth/`) and hidden files
    are ignored. In a Parquet file, the column `column` names the events. Raises InputError when the source does not
    exist or cannot be read, and the errors of `index` for a Parquet file.
    """
    if form == PARQUET and _is_parquet_file(source):
        yield from index(source, workload or default_workload(), column=column)
        return
    for entry in _files(source):
        if not entry.name.endswith(f".{form}"):
            continue
        if form == PARQUET:
            yield from index(Path(entry.path), workload or default_workload(), column=column, file=entry.name)
            continue
        with contextlib.suppress(FileNotFoundError):  # the file was removed after it was listed
            stat = entry.stat()
            yield Stamp(entry.name.removesuffix(f".{form}"), stat.st_size, stat.st_mtime_ns)


def place_event(source: Path, form: str, stamp: Stamp) -> EventFile:
    """Return the location of the event with this stamp."""
    if stamp.file is None or stamp.first is None:
        return EventFile(name=stamp.name, path=source / f"{stamp.name}.{form}")
    rows = Rows(first=stamp.first, number=stamp.size, mtime_ns=stamp.mtime_ns)
    return EventFile(name=stamp.name, path=source / stamp.file, rows=rows)


def _is_parquet_file(source: Path) -> bool:
    return source.suffix == f".{PARQUET}" and source.is_file()


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files of a folder that may be events, in any format."""
    ends = tuple(f".{form}" for form in FORMATS)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(ends) and entry.name[0] != "." and entry.is_file():
                    yield entry
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file; set -d to a folder of events or a *.parquet file") from error
    except FileNotFoundError as error:
        raise InputError(f"folder {folder} does not exist; set -d to the folder of events") from error
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error


def event_key(name: str) -> bytes:
    """Return the sort key of an event name: unique, with digits in numerical order (evt_2 before evt_10)."""
    key = bytearray()
    for place, part in enumerate(re.split(r"([0-9]+)", name)):
        if place % 2 == 0:
            key += os.fsencode(part) + b"\0"
        else:  # a longer number is larger; of equal numbers, the one with more leading zeros comes first
            digits = part.lstrip("0")
            key += len(digits).to_bytes(2, "big") + digits.encode() + (65535 - len(part)).to_bytes(2, "big")
    return bytes(key)


class Reader:
    """Reads events of any format; thread-safe. A Parquet file stays open until the next one or `close`."""

    def __init__(self, workload: Workload | None = None) -> None:
        """Open no file yet; `workload` defines the content of an event, by default ExaTrkX."""
        self._workload = workload or default_workload()
        self._parquet = ParquetReader(self._workload)

    def read(self, event: EventFile) -> EventInput:
        """Return the content of an event.

        Raises UnreadableEvent, an InputError, when the file cannot be read or changes meanwhile; InputError, with the
        file and the place in it, for content that is not an event of the workload.
        """
        if event.rows is not None:
            return self._parquet.read(event, event.rows)
        return read_event(event.path, self._workload)

    def close(self) -> None:
        """Close the open file."""
        self._parquet.close()


def read_event(path: Path, workload: Workload | None = None) -> EventInput:
    """Return the content of a one-event file; the suffix gives the format, an unknown suffix means CSV.

    Raises UnreadableEvent, an InputError, when the file cannot be read or changes meanwhile; InputError for content
    that is not an event of the workload, by default ExaTrkX.
    """
    form = path.suffix[1:] if path.suffix[1:] in FORMATS else CSV
    try:
        with parse_errors(path, f"*.{form}", but=(OSError,)), path.open("rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()  # parse_errors reports a file that does not fit into memory
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if (before.st_mtime_ns, len(data)) != (after.st_mtime_ns, after.st_size):
        raise UnreadableEvent(f"{path} changed while it was read; run again when no program writes to the file")
    tensors = _parsed(path, data, form, workload or default_workload())
    digest = hashlib.sha256(data).hexdigest()
    return EventInput(tensors=tensors, size=len(data), mtime_ns=after.st_mtime_ns, sha256=digest)


def _parsed(path: Path, data: bytes, form: str, workload: Workload) -> Tensors:
    parsers = parsers_of(workload)
    if form not in parsers:
        raise InputError(f"{path}: events of workload {workload.name} are {', '.join(parsers)} or parquet, not {form}")
    try:
        with parse_errors(path, f"*.{form}"):
            return parsers[form](path, data)
    except InputError as error:
        if is_lfs_pointer(path):
            raise InputError(f"{path} is a Git LFS pointer, not the file itself; {LFS_REMEDY}") from error
        raise
