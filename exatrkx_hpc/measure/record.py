"""Append model times as rows to a CSV file during `metrics --watch`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.measure.metrics import ModelTimes

CSV_COLUMNS: Final = ("time", *(field.name for field in fields(ModelTimes)))
"""The header of the CSV: the time in seconds since 1970, then the fields of ModelTimes."""

_LONGEST_ROW: Final = 1 << 16


def append_csv(path: Path, times: Sequence[ModelTimes], *, at: float) -> None:
    """Append one row per model to `path`, with a header if the file is new; `at` is in seconds since 1970.

    No partial row remains: first a partial row from a crash is removed; rows that do not fit on the disk are removed
    again. Raises OutputError when the rows cannot be written, or when the file has other content.
    """
    rows = [[f"{at:.3f}", *(getattr(one, name) for name in CSV_COLUMNS[1:])] for one in times]
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            end = _cut_torn_row(file, path)
            _write(file, _csv([CSV_COLUMNS, *rows] if end == 0 else rows), end)
        finally:
            os.close(file)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; check permissions and free space, or choose another --csv"
        ) from error


def _write(file: int, data: bytes, end: int) -> None:
    """Append all of `data`, or none: on an error, truncate the file to `end` bytes."""
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, end)
        raise


def _cut_torn_row(file: int, path: Path) -> int:
    """Truncate the file after its last newline and return the remaining size in bytes."""
    size = os.fstat(file).st_size
    header = _csv([CSV_COLUMNS])
    if os.pread(file, min(size, len(header)), 0) != header[:size]:
        raise OutputError(f"{path} has other columns than these metrics; choose another --csv")
    if size < len(header):
        size = 0  # a partial header
    else:
        start = max(0, size - _LONGEST_ROW)
        size = start + os.pread(file, _LONGEST_ROW, start).rfind(b"\n") + 1
    os.ftruncate(file, size)
    return size


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
