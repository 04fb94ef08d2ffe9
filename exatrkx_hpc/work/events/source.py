"""Find and read events in files of any format.

A source of events is a folder of `*.csv`, `*.npy` or `*.npz` files with one event each, a folder of `*.parquet` files
with many events each, or one such Parquet file. All events of a folder have the same format.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer
from exatrkx_hpc.base.parsing import parse_errors
from exatrkx_hpc.work.events.parquet_files import EVENT, index, require_pyarrow
from exatrkx_hpc.work.events.parquet_reader import ParquetReader
from exatrkx_hpc.work.events.table_files import parse_arrays, parse_csv_table
from exatrkx_hpc.work.events.values import EventFile, EventInput, PassedOver, Rows, Stamp, UnreadableEvent
from exatrkx_hpc.work.workloads.base import Parser, Tensors, Workload
from exatrkx_hpc.work.workloads.table import workload as default_workload

__all__ = ["EVENT", "EventFile", "EventInput", "PassedOver", "Rows", "Stamp", "UnreadableEvent"]

CSV: Final = "csv"
PARQUET: Final = "parquet"

_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")
FORMATS: Final = (CSV, "npy", "npz", PARQUET)
"""The event formats, named after the file suffix; a workload may support only some of them."""

_ENDS: Final = tuple(f".{form}" for form in FORMATS)
#: Files beside an event that have its suffix, as in TrackML: `NAME-truth.csv` beside `NAME.csv` or `NAME-hits.csv`.
_COMPANIONS: Final = ("-truth", "-particles", "-cells")


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
        raise no_events(source, workload)
    for (key, event), (following, _) in itertools.pairwise(keyed):
        if key == following:
            raise scattered_events(source, [event.name])
    return tuple(event for _, event in keyed)


def no_events(source: Path, workload: Workload | None = None) -> InputError:
    """Return the error for a source without events."""
    kinds = ", ".join(f"*.{form}" for form in FORMATS)
    if workload is not None and workload.stem:
        kinds = ", ".join(f"*{workload.stem}.{form}" for form in parsers_of(workload)) + f", *.{PARQUET}"
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
    folders: dict[str, str] = {}
    if _is_parquet_file(source):
        found[PARQUET] = source.name
    else:
        for entry in _entries(source):
            form = entry.name.rpartition(".")[2]
            if entry.name[0] != "." and entry.name.endswith(_ENDS):
                (folders if _is_folder(entry) else found).setdefault(form, entry.name)
    found = found or folders  # a folder that is named like an event fails as one, but does not choose the format
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


def scan_events(
    source: Path,
    form: str,
    *,
    column: str = EVENT,
    workload: Workload | None = None,
    passed: PassedOver | None = None,
) -> Iterator[Stamp]:
    """Yield the events of `source`, unordered, without reading them and without keeping all in memory.

    Events are what is named `*.form` directly in the folder, also what cannot be read: a link to nothing, a folder, a
    file without permission. These fail when they are read, and are not passed over. What is passed over is counted in
    `passed`: hidden files, folders (`truth/`), files of other suffixes, and companions of an event (`NAME-truth.csv`;
    for a workload with a `stem`, each file of this format whose name does not end with it).
    In a Parquet file, the column `column` names the events. Raises InputError when the source does not exist or
    cannot be read, and the errors of `index` for a Parquet file.
    """
    if form == PARQUET and _is_parquet_file(source):
        yield from index(source, workload or default_workload(), column=column)
        return
    for entry in _entries(source):
        if (kind := _passed_over(source, entry, form, stem=workload.stem if workload else "")) is not None:
            if passed is not None:
                passed.add(kind)
            continue
        found = _stamp(entry, form)
        if found is not None and form == PARQUET:
            _require_regular(Path(entry.path), entry.stat)
            yield from index(Path(entry.path), workload or default_workload(), column=column, file=entry.name)
        elif found is not None:
            yield found


def _passed_over(source: Path, entry: os.DirEntry[str], form: str, *, stem: str) -> str | None:
    """Return the kind of what is no event of this format, or None for an event, whose name ends with `stem`."""
    name, end = entry.name, f".{form}"
    if name[0] == ".":
        return "hidden"
    if not name.endswith(end):
        if _is_folder(entry):
            return "truth folder" if name == "truth" else "folder"
        return f"*{suffix}" if (suffix := os.path.splitext(name)[1]) else "without suffix"  # noqa: PTH122 - no Path
    if stem and form != PARQUET:
        return None if name.endswith(f"{stem}{end}") else "companion"
    whole = name.removesuffix(end)
    for companion in _COMPANIONS:
        event = whole.removesuffix(companion)
        if event != whole and any(os.path.lexists(source / f"{event}{one}{end}") for one in ("", "-hits")):
            return "companion"
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, for example
        return False


def _stamp(entry: os.DirEntry[str], form: str) -> Stamp | None:
    """Return the stamp of an event, or None if it was removed after it was listed."""
    size = mtime_ns = 0
    try:
        found = entry.stat()
        if stat.S_ISREG(found.st_mode):
            size, mtime_ns = found.st_size, found.st_mtime_ns
    except FileNotFoundError:
        if not entry.is_symlink():
            return None
    except OSError:  # no permission, a loop of links, a file system that fails: told when the event is read
        pass
    return Stamp(entry.name.removesuffix(f".{form}"), size, mtime_ns)


def _require_regular(path: Path, look: Callable[[], os.stat_result]) -> None:
    """Raise UnreadableEvent unless it is a file; a pipe, for example, would block its reader for ever."""
    try:
        mode = look().st_mode
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a folder"
        raise UnreadableEvent(f"cannot read {path}: it is {what}; move it elsewhere, or put the event in its place")


def place_event(source: Path, form: str, stamp: Stamp) -> EventFile:
    """Return the location of the event with this stamp."""
    if stamp.file is None or stamp.first is None:
        return EventFile(name=stamp.name, path=source / f"{stamp.name}.{form}")
    rows = Rows(first=stamp.first, number=stamp.size, mtime_ns=stamp.mtime_ns)
    return EventFile(name=stamp.name, path=source / stamp.file, rows=rows)


def _is_parquet_file(source: Path) -> bool:
    return source.suffix == f".{PARQUET}" and source.is_file()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
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

    def __init__(self, workload: Workload | None = None, *, newline: bool = False) -> None:
        """Open no file yet; `workload` defines the content of an event, by default ExaTrkX.

        `newline` is whether each CSV file of this dataset ends with a newline; then a file without one was cut.
        """
        self._workload = workload or default_workload()
        self._newline = newline
        self._parquet = ParquetReader(self._workload)

    def read(self, event: EventFile) -> EventInput:
        """Return the content of an event.

        Raises UnreadableEvent, an InputError, when the file cannot be read, is empty, was cut or changes meanwhile, or
        when the name is too long for the files named after it; InputError, with the file and the place in it, for
        content that is not an event of the workload.
        """
        if (length := len(os.fsencode(event.name))) > self._workload.longest_name:
            raise UnreadableEvent(
                f"the name {event.name[:40]}… has {length} bytes, but result files are named after events and need "
                f"one of at most {self._workload.longest_name}; rename {event.path}"
            )
        if event.rows is not None:
            return self._parquet.read(event, event.rows)
        return read_event(event.path, self._workload, newline=self._newline)

    def close(self) -> None:
        """Close the open file."""
        self._parquet.close()


def read_event(path: Path, workload: Workload | None = None, *, newline: bool = False) -> EventInput:
    """Return the content of a one-event file; the suffix gives the format, an unknown suffix means CSV.

    Raises UnreadableEvent, an InputError, when the file cannot be read, has no bytes, or changes meanwhile, and with
    `newline` when a CSV file does not end with a newline; InputError for content that is not an event of the workload,
    by default ExaTrkX.
    """
    form = path.suffix[1:] if path.suffix[1:] in FORMATS else CSV
    try:
        with parse_errors(path, f"*.{form}", but=(OSError,)), _opened(path) as file:
            before = os.fstat(file.fileno())
            _require_regular(path, lambda: before)
            data = file.read()  # parse_errors reports a file that does not fit into memory
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if (before.st_mtime_ns, len(data)) != (after.st_mtime_ns, after.st_size):
        raise UnreadableEvent(f"{path} changed while it was read; run again when no program writes to the file")
    if not data:
        none = " (an event of 0 hits is one empty line, or the header alone)" if form == CSV else ""
        raise UnreadableEvent(f"{path} is empty, 0 bytes; write it again{none}")
    tensors = _parsed(path, data, form, workload or default_workload())
    if newline and form == CSV and not ends_with_newline(data):
        raise UnreadableEvent(
            f"{path} does not end with a newline, as the other files do, so its last number may be cut; write it "
            "again, or end its last line"
        )
    digest = hashlib.sha256(data).hexdigest()
    return EventInput(tensors=tensors, size=len(data), mtime_ns=after.st_mtime_ns, sha256=digest)


def ends_with_newline(data: bytes) -> bool:
    """Return whether the text ends with the line end of any system."""
    return data.endswith((b"\n", b"\r"))


def last_byte(path: Path) -> bytes:
    """Return the last byte of a file; empty if it has none or cannot be read."""
    try:
        with _opened(path) as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)
    except (OSError, ValueError):
        return b""


def _opened(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe without a writer does not block."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - a descriptor


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
