"""Write events in any format: one file per event, or one Parquet file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.events.parquet_files import EVENT, require_pyarrow
from exatrkx_hpc.work.workloads.hits_numpy import COLUMNS

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

Float32 = NDArray[np.float32]

HITS: Final = ("r", "phi", "z")
"""The columns of a hit: r/3000 mm, phi/pi, z/400 mm."""

Write = Callable[[str, Float32], None]
"""Writes one event: called with its name and its hits `[N, 3]`."""

PARQUET_FILE: Final = "events.parquet"
"""The name of the Parquet file in the output folder."""

DIGITS: Final = "%.9g"
"""Nine significant digits restore a float32 exactly."""

#: Hits per row group: small enough to read one event quickly, large enough for few groups in a file of 1e8 hits.
_GROUP: Final = 200_000


@contextlib.contextmanager
def event_writer(folder: Path, form: str) -> Iterator[Write]:
    """Yield a function that writes events to `folder`, each file atomically; Parquet appears when the block succeeds.

    Raises MissingComponent for Parquet without pyarrow, OSError when a file cannot be written, InputError for an
    event without hits in Parquet, which would have no row.
    """
    if form == "parquet":
        require_pyarrow()
        with _parquet_file(folder / PARQUET_FILE) as groups:
            yield groups.add
    else:
        yield lambda name, hits: write_whole(folder / f"{name}.{form}", _BYTES[form](hits))


def _csv(hits: Float32) -> bytes:
    line = ",".join([DIGITS] * COLUMNS) + "\n"
    if not len(hits):
        return b"\n"  # a file of 0 bytes is no event
    return (line * len(hits) % tuple(hits.ravel().tolist())).encode()


def _npy(hits: Float32) -> bytes:
    file = io.BytesIO()
    np.save(file, hits)
    return file.getvalue()


def _npz(hits: Float32) -> bytes:
    file = io.BytesIO()
    np.savez(file, hits=hits)
    return file.getvalue()


_BYTES: Final[dict[str, Callable[[Float32], bytes]]] = {"csv": _csv, "npy": _npy, "npz": _npz}


class _Groups:
    """Collects events into row groups."""

    def __init__(self, file: ParquetWriter) -> None:
        self._file = file
        self._names: list[str] = []
        self._hits: list[Float32] = []
        self._number = 0

    def add(self, name: str, hits: Float32) -> None:
        if not len(hits):
            raise InputError(
                f"{name} has no hits, and Parquet cannot store an event without rows; choose another format, or "
                "remove the event"
            )
        self._names.append(name)
        self._hits.append(hits)
        self._number += len(hits)
        if self._number >= _GROUP:
            self.flush()

    def flush(self) -> None:
        if not self._names:
            return
        import pyarrow

        table = np.concatenate(self._hits)
        rows = np.repeat(np.arange(len(self._names), dtype=np.int32), [len(hits) for hits in self._hits])
        names = pyarrow.DictionaryArray.from_arrays(rows, self._names).cast(pyarrow.string())
        columns = {name: table[:, column] for column, name in enumerate(HITS)}
        self._file.write_table(pyarrow.table({EVENT: names, **columns}))
        self._names, self._hits, self._number = [], [], 0


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[_Groups]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {EVENT: pyarrow.string(), **dict.fromkeys(HITS, pyarrow.float32())}
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file, ParquetWriter(file, pyarrow.schema(kinds)) as parquet:
            groups = _Groups(parquet)
            yield groups
            groups.flush()
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
