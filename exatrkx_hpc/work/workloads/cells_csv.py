"""Cells as the CSV file of the public client of traccc: a header, then one cell per line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.whole_numbers import whole_numbers
from exatrkx_hpc.work.workloads.cells_check import Float32, Int64, ModuleList, first_fault

#: The columns of the two inputs.
POSITIONS: Final = ("geometry_id", "measurement_id", "channel0", "channel1")
PROPERTIES: Final = ("timestamp", "value")
COLUMNS: Final = (*POSITIONS, *PROPERTIES)
HEADER: Final = ",".join(COLUMNS)

_KIND: Final = np.dtype([(name, np.int64) for name in POSITIONS] + [(name, np.float64) for name in PROPERTIES])
#: The characters of a file that is read quickly; any other is read slowly, to name the line of an error.
_PLAIN: Final = b"0123456789+-.eE,\r\n"
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)", re.IGNORECASE)


def parse_cells(path: Path, data: bytes, modules: ModuleList | None) -> tuple[Int64, Float32]:
    """Return the positions `[N, 4]` and properties `[N, 2]` of the cells in the bytes of the CSV file at `path`.

    The columns may be in any order, and others are ignored. Raises InputError with file, line and remedy for a missing
    column, for what is not a number, for an event without cells, and for a cell that the service cannot use.
    """
    quick = _quick(data)
    positions, properties = quick if quick is not None else _careful(path, data)
    if not len(positions):
        raise InputError(f"{path} has no cells; remove the file, or write the event again")
    with np.errstate(over="ignore"):  # a number that is too large becomes an infinity, which is refused
        rounded = properties.astype(np.float32)
    if (fault := first_fault(positions, rounded, modules)) is not None:
        row, why = fault
        raise InputError(f"{path}:{row + 2}: {why}")
    return positions, rounded


def _quick(data: bytes) -> tuple[Int64, NDArray[np.float64]] | None:
    """Return the columns of a file as this program writes it; None for any other file."""
    header, _, body = data.partition(b"\n")
    if header.strip() != HEADER.encode() or not body.endswith(b"\n") or body.translate(None, _PLAIN):
        return None
    if not _have_whole_numbers(body):
        return None
    try:
        table = np.loadtxt(io.BytesIO(body), delimiter=",", dtype=_KIND, ndmin=1, comments=None)
    except (ValueError, OverflowError):  # another number of columns, or an integer of more than 63 bits
        return None
    return _stacked(table, POSITIONS, np.int64), _stacked(table, PROPERTIES, np.float64)


def _have_whole_numbers(body: bytes) -> bool:
    """Return whether each line has all columns, and none of the positions a point or an exponent, which numpy cuts."""
    text = np.frombuffer(body, dtype=np.uint8)
    ends = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
    points = np.flatnonzero((text == ord(".")) | (text == ord("e")) | (text == ord("E")))
    fields = np.searchsorted(ends, points) % len(COLUMNS)
    return len(ends) == body.count(b"\n") * len(COLUMNS) and bool((fields >= len(POSITIONS)).all())


def _stacked(table: NDArray[np.void], names: Sequence[str], kind: type) -> NDArray:  # type: ignore[type-arg]
    filled: NDArray = np.empty((len(table), len(names)), dtype=kind)  # type: ignore[type-arg]
    for place, name in enumerate(names):
        filled[:, place] = table[name]
    return filled


def _careful(path: Path, data: bytes) -> tuple[Int64, NDArray[np.float64]]:
    """Return the columns of any file; raise InputError with the line of an error."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error.reason}); write it as CSV with the header {HEADER}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    header = rows[0] if rows else []
    if missing := [column for column in COLUMNS if column not in header]:
        held = ",".join(header)[:80] or "nothing"
        raise InputError(f"{path}:1: has no column {missing[0]} (it has: {held}); expected the header {HEADER}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} columns, not {len(header)}, as in the header; correct it")
    columns = {name: [row[header.index(name)] for row in rows[1:]] for name in COLUMNS}
    return (
        np.stack([_whole(path, name, columns[name]) for name in POSITIONS], axis=1),
        np.stack([_real(path, name, columns[name]) for name in PROPERTIES], axis=1),
    )


def _whole(path: Path, name: str, texts: Sequence[str]) -> Int64:
    try:
        numbers = whole_numbers(texts, first=2)
    except ValueError as error:
        raise InputError(f"{path}:{error}; the column {name} holds 64-bit integers") from error
    if numbers.dtype != np.int64:
        row = int(np.argmax(numbers > np.iinfo(np.int64).max))
        raise InputError(f"{path}:{row + 2}: {name} {numbers[row]} does not fit into int64, the type of the service")
    return numbers.astype(np.int64, copy=False)


def _real(path: Path, name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    for number, text in enumerate(texts, start=2):
        if not _NUMBER.fullmatch(text):
            raise InputError(f"{path}:{number}: {text[:40]!r} is not a number; correct the column {name}")
    return np.array([float(text) for text in texts], dtype=np.float64)
