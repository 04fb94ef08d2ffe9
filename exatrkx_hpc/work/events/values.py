"""Common values of all event formats: location, stamp, content and errors of an event."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Tensors


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one event in a file of many events, valid for the file as of `mtime_ns` (ns since 1970)."""

    first: int
    number: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class EventFile:
    """One event on disk: its name (`evt_0` for `evt_0.csv`), its path, and its rows if the file has many events."""

    name: str
    path: Path
    rows: Rows | None = None


class Stamp(NamedTuple):
    """An event as found, before it is read: its location, and values that change when its file is rewritten.

    `size` is the size of the file in bytes, `mtime_ns` its modification time (ns since 1970). In a file of many
    events, `size` is the number of rows, `file` the file's name in the folder (empty if the file itself is the
    source) and `first` the first row.
    """

    name: str
    size: int
    mtime_ns: int
    file: str | None = None
    first: int | None = None


@dataclass(frozen=True, kw_only=True)
class EventInput:
    """The content of one event: its tensors, and values that identify this content.

    `size` and `mtime_ns` are as in a `Stamp`, from the time of reading. `sha256` is the digest of the file's bytes;
    for a file of many events, the digest of the tensors' bytes.
    """

    tensors: Tensors
    size: int
    mtime_ns: int
    sha256: str


class PassedOver:
    """What lies in a folder of events and is no event, counted by kind."""

    #: Kinds of file suffixes that are told apart; further ones are `other files`.
    MOST: Final = 8

    def __init__(self) -> None:
        """Start with nothing."""
        self.counts: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        """Count one of this kind, such as `hidden`, `folder`, `companion` or `*.json`."""
        full = len(self.counts) >= self.MOST and kind not in self.counts
        self.counts["other files" if full else kind] += 1


class UnreadableEvent(InputError):
    """The file of an event cannot be read now: the file is missing or changed, or the file system fails."""
