"""Events and labels as files: a folder of `*.csv`, one hit a line, and one label a line in return."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.errors import InputError

COLUMNS = 3
"""Values of a hit: r/3000 mm, phi/pi, z/400 mm."""

_WANTED = "a hit is r/3000,phi/pi,z/400, without a header"


@dataclass(frozen=True, kw_only=True)
class EventFile:
    """One event on disk: its name (`evt_0` for `evt_0.csv`) and its path."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class EventInput:
    """The content of one event file: its hits, float32 `[N, 3]`, and what tells it from another content.

    `size` (bytes) and `mtime_ns` are the file's when it was read, `sha256` is the digest of its bytes.
    """

    hits: NDArray[np.float32]
    size: int
    mtime_ns: int
    sha256: str


class UnreadableEvent(InputError):
    """The file of an event cannot be read now: it is gone, or its file system is in trouble."""


def find_events(folder: Path) -> tuple[EventFile, ...]:
    """Return the events of `folder`, `evt_2` before `evt_10`: the `*.csv` files that lie directly in it.

    What lies deeper (`truth/`) is no event, and neither is a hidden file. Raises InputError when the folder
    does not exist, cannot be read or holds no event.
    """
    names = sorted((entry.name.removesuffix(".csv") for entry in scan_events(folder)), key=event_key)
    if not names:
        raise no_events(folder)
    return tuple(EventFile(name=name, path=folder / f"{name}.csv") for name in names)


def no_events(folder: Path) -> InputError:
    """Return what to say of a folder without any event."""
    return InputError(f"no *.csv in {folder}; 'exatrkx-hpc events generate' makes events")


def scan_events(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files of the events of `folder`, in no order and without holding them all; see `find_events`.

    Raises InputError when the folder does not exist or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".csv") and entry.name[0] != "." and entry.is_file():
                    yield entry
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file; -d wants the folder that holds the events") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no folder {folder}; -d names the folder that holds the events") from error
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error


def event_key(name: str) -> bytes:
    """Return the key of an event's name: keys order digits as numbers, evt_2 before evt_10, and no two are equal."""
    key = bytearray()
    for place, part in enumerate(re.split(r"([0-9]+)", name)):
        if place % 2 == 0:
            key += os.fsencode(part) + b"\0"
        else:  # a longer number is larger; among equal ones the one with more zeros before it goes first
            digits = part.lstrip("0")
            key += len(digits).to_bytes(2, "big") + digits.encode() + (65535 - len(part)).to_bytes(2, "big")
    return bytes(key)


def read_hits(path: Path) -> NDArray[np.float32]:
    """Return the hits of one event, float32 `[N, 3]`, contiguous and finite; an empty file has N = 0.

    Raises InputError, with the file and the line, for anything but three finite numbers on every line.
    """
    return read_event(path).hits


def read_event(path: Path) -> EventInput:
    """Return the content of one event file; see `read_hits`.

    Raises UnreadableEvent, an InputError, when the file cannot be read or changes meanwhile, and InputError, with
    the file and the line, for anything but three finite numbers on every line.
    """
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
    if (before.st_mtime_ns, len(data)) != (after.st_mtime_ns, after.st_size):
        raise UnreadableEvent(f"{path} changed while it was read; run it again when nobody writes to it")
    hits = _parse(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return EventInput(hits=hits, size=len(data), mtime_ns=after.st_mtime_ns, sha256=digest)


def _parse(path: Path, data: bytes) -> NDArray[np.float32]:
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error.reason}); {_WANTED}") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        return np.empty((0, COLUMNS), dtype=np.float32)
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes an infinity, and is refused below
            hits = np.loadtxt(lines, dtype=np.float32, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        raise _complaint(path, lines) from None
    # loadtxt passes over blank lines, so the number of rows is part of the check.
    if hits.shape != (len(lines), COLUMNS) or not np.isfinite(hits).all():
        raise _complaint(path, lines)
    return np.ascontiguousarray(hits)


def _complaint(path: Path, lines: list[str]) -> InputError:
    """Find the first bad line again, slowly, and say what is wrong with it."""
    for number, line in enumerate(lines, start=1):
        fault = _fault(line)
        if fault:
            return InputError(f"{path}:{number}: {fault}; {_WANTED}")
    return InputError(f"{path}: cannot be read as numbers; {_WANTED}")


def _fault(line: str) -> str | None:
    if not line.strip():
        return "a blank line"
    values = line.split(",")
    if len(values) != COLUMNS:
        return f"{len(values)} column{'s' if len(values) > 1 else ''}, not {COLUMNS}"
    for value in values:
        try:
            number = float(value)
        except ValueError:
            return f"{value.strip()[:40]!r} is not a number"
        if not abs(number) <= float(np.finfo(np.float32).max):
            return f"{value.strip()[:40]} is not finite in single precision"
    return None


def labels_text(labels: NDArray[np.int64]) -> str:
    """Return labels `[N]` as the text of a label file: one integer a line, in the order of the hits."""
    return "".join(f"{label}\n" for label in labels.tolist())


def read_labels(path: Path) -> NDArray[np.int64]:
    """Return the labels of a label file, int64 `[N]`; an empty file has N = 0.

    Raises InputError when it cannot be read or holds anything but one integer a line.
    """
    try:
        return np.array([int(line) for line in path.read_text(encoding="ascii").splitlines()], dtype=np.int64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no label file: one integer a line is wanted ({error})") from error
