"""What every format of events speaks of: the place of an event, its stamp, its content, and what may be wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import ExatrkxError, InputError

Float32 = NDArray[np.float32]

COLUMNS = 3
"""Values of a hit: r/3000 mm, phi/pi, z/400 mm."""


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
    hits, `file` the file's name in the folder (nothing when the file itself is the source) and `first` the first row.
    """

    name: str
    size: int
    mtime_ns: int
    file: str | None = None
    first: int | None = None


@dataclass(frozen=True, kw_only=True)
class EventInput:
    """The content of one event: its hits, float32 `[N, 3]`, and what tells it from another content.

    `size` and `mtime_ns` are as in a `Stamp`, from when it was read. `sha256` is the digest of the file's bytes, or
    of the bytes of `hits` where the file holds many events.
    """

    hits: Float32
    size: int
    mtime_ns: int
    sha256: str


class UnreadableEvent(InputError):
    """The file of an event cannot be read now: it is gone, changed, or its file system is in trouble."""


@contextlib.contextmanager
def blamed_on(path: Path, form: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a parser raises inside the block into an InputError of one line: bytes can surprise any parser.

    `form` is what the file at `path` should be, such as "a .npy file". Errors of ours pass as they are, and
    those of the classes `but`.
    """
    passing: tuple[type[Exception], ...] = (ExatrkxError, *but)
    try:
        yield
    except passing:
        raise
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is; split it, or start fewer workers") from error
    except Exception as error:
        said = " ".join(str(error).split())[:200] or "no reason given"
        raise InputError(f"{path} cannot be read as {form} ({type(error).__name__}: {said}); write it again") from error
