"""What every format of events shares: the location of an event, its stamp, its content and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Tensors


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of a file of many events are one of them, as the file was at `mtime_ns` (ns since 1970)."""

    first: int
    number: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class EventFile:
    """One event on disk: its name (`evt_0` for `evt_0.csv`), its path, and its rows where the file holds more."""

    name: str
    path: Path
    rows: Rows | None = None


class Stamp(NamedTuple):
    """An event as it is found, unread: what tells that it was written again, and where it is.

    `size` is the file's in bytes, and `mtime_ns` its date. Where a file holds many events `size` is the number of
    rows, `file` the file's name in the folder (nothing when the file itself is the source) and `first` the first row.
    """

    name: str
    size: int
    mtime_ns: int
    file: str | None = None
    first: int | None = None


@dataclass(frozen=True, kw_only=True)
class EventInput:
    """The content of one event: its tensors, and what tells it from another content.

    `size` and `mtime_ns` are as in a `Stamp`, from when it was read. `sha256` is the digest of the file's bytes, or
    of the bytes of the tensors where the file holds many events.
    """

    tensors: Tensors
    size: int
    mtime_ns: int
    sha256: str


class UnreadableEvent(InputError):
    """The file of an event cannot be read now: it is gone, changed, or its file system is in trouble."""
