"""One-event files with named columns: CSV with a header, or `.npz` with one array per input of the workload.

For workloads without their own formats.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Final

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.parsing import parse_errors, read_npy, unpack_npz
from exatrkx_hpc.base.whole_numbers import whole_numbers
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload
from exatrkx_hpc.work.workloads.given import as_tensors

#: float() also accepts underscores and digits of other scripts; in a table, these are not numbers.
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)", re.IGNORECASE)


def parse_csv_table(workload: Workload, path: Path, data: bytes) -> Tensors:
    """Return the inputs in a CSV file; its first line names the columns, in any order. Other columns are ignored.

    Raises InputError, with the file and the line, for a missing column and for a value that is not a number of the
    column's type.
    """
    with parse_errors(path, "CSV"):
        lines = data.decode("utf-8-sig").splitlines()
        while lines and not lines[-1].strip():
            lines.pop()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    wanted = [column for spec in workload.inputs for column in spec.columns]
    header = rows[0] if rows else []
    if missing := [column for column in wanted if column not in header]:
        held = ",".join(header)[:80] or "nothing"
        raise InputError(
            f"{path}:1: has no column {missing[0]} (it has: {held}); expected the header {','.join(wanted)}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} columns, not {len(header)}, as in the header")
    values = {column: [row[header.index(column)] for row in rows[1:]] for column in wanted}
    tensors = {spec.name: _tensor(spec, values, path) for spec in workload.inputs}
    return _checked(workload, tensors, path)


def _tensor(spec: Tensor, values: dict[str, list[str]], path: Path) -> Array:
    columns = [_column(spec, column, values[column], path) for column in spec.columns]
    return np.stack(columns, axis=1) if len(spec.shape) == 2 else columns[0]


def _column(spec: Tensor, column: str, texts: list[str], path: Path) -> Array:
    if np.dtype(spec.dtype).kind in "iu":
        try:
            whole = whole_numbers(texts, first=2)
        except ValueError as error:
            raise InputError(f"{path}:{error}; the column {column} is {spec.dtype}") from error
        return whole
    for number, text in enumerate(texts, start=2):
        if not _NUMBER.fullmatch(text):
            raise InputError(f"{path}:{number}: {text[:40]!r} is not a number; the column {column} is {spec.dtype}")
    return np.array([float(text) for text in texts], dtype=np.float64)


def parse_arrays(workload: Workload, path: Path, data: bytes) -> Tensors:
    """Return the inputs in an `.npz` file: one array per input, of the same name. Other arrays are ignored.

    Python objects are never loaded. Raises InputError for a damaged file, a missing array and an invalid array.
    """
    names = [spec.name for spec in workload.inputs]
    wanted = f"an event of workload {workload.name} has the arrays {', '.join(names)}"
    arrays = unpack_npz(path, data, wanted=wanted)
    if missing := [name for name in names if name not in arrays]:
        held = ", ".join(arrays) or "none"
        raise InputError(f"{path} has no array {missing[0]} (it has: {held[:80]}); {wanted}")
    tensors = {name: read_npy(path / f"{name}.npy", arrays[name](), wanted=wanted) for name in names}
    return _checked(workload, tensors, path)


def _checked(workload: Workload, tensors: Tensors, path: Path) -> Tensors:
    try:
        return as_tensors(workload, tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
