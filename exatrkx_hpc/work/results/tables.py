"""Tensors of any type and rank as CSV: one line per index of the first axis, with the other axes flattened.

A tensor `[N, 3]` is N lines of three values, `[2, E]` is two lines of E values, `[N]` is one value per line, and
`[N, 2, 2]` is N lines of four values, with the last axis fastest. There is no header.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

from exatrkx_hpc.base.errors import InputError, ModelError
from exatrkx_hpc.base.whole_numbers import whole_number

Array = NDArray[Any]

#: Enough digits to restore the same number; Triton's BF16 is float32 in numpy.
_FORMATS = {"FP16": "%.5g", "BF16": "%.9g", "FP32": "%.9g", "FP64": "%.17g"}
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def numpy_type(datatype: str) -> np.dtype[Any]:
    """Return numpy's type for Triton's, such as float32 for FP32; raises ModelError for an unknown type."""
    found = triton_to_np_dtype(datatype)
    if found is None:
        raise ModelError(
            f"{datatype} is a data type that this client does not support; use another client for this model"
        )
    return np.dtype(found)


def read_tensor(path: Path, *, datatype: str, shape: Sequence[int]) -> Array:
    """Return the tensor in a CSV file, of Triton's `datatype` and a shape that fits `shape`; -1 is any size.

    In an empty file, an axis of any size has size 0. Raises InputError, with the file and where possible the line,
    for a value that is not of this type or a table that does not fit.
    """
    rows = _rows(path, blank=datatype == "BYTES")
    size = _shape(path, rows, tuple(shape))
    convert, dtype = _converter(datatype), numpy_type(datatype)
    values = np.empty(math.prod(size), dtype=dtype)
    place = 0
    for number, row in rows:
        for text in row:
            try:
                with np.errstate(over="ignore"):  # the converter refuses a value that does not fit
                    values[place] = convert(text)
            except (ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}:{number}: {text.strip()[:40]!r} is not a valid {datatype}; correct it"
                ) from error
            place += 1
    return values.reshape(size)


def tensor_text(tensor: Array, *, datatype: str) -> str:
    """Return a tensor as CSV; `read_tensor` restores the same values, except BYTES that are not UTF-8."""
    lines = len(tensor) if tensor.ndim else 1
    table = tensor.reshape(lines, -1) if tensor.size else np.empty((0, 1), dtype=tensor.dtype)
    out = io.StringIO()
    if datatype in _FORMATS:
        np.savetxt(out, table.astype(np.float64), fmt=_FORMATS[datatype], delimiter=",")
    elif datatype == "BYTES":
        rows = ([_words(value) for value in row] for row in table)
        csv.writer(out, lineterminator="\n").writerows(rows)
    else:
        whole = table.astype(np.uint8) if datatype == "BOOL" else table
        out.writelines(",".join(map(str, row)) + "\n" for row in whole.tolist())
    return out.getvalue()


def _rows(path: Path, *, blank: bool) -> list[tuple[int, list[str]]]:
    """Return the lines with cells, each with its number; `blank` is whether a line may have blank cells alone."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if (row if blank else any(cell.strip() for cell in row))]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); give the tensor as CSV") from error
    except csv.Error as error:
        raise InputError(f"{path} is not valid CSV: {error}; correct it") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _shape(path: Path, rows: list[tuple[int, list[str]]], declared: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the table as a tensor of the declared shape; raise InputError if it does not fit."""
    wanted = "[" + ", ".join(map(str, declared)) + "]"
    if not rows:
        if not {-1, 0} & set(declared):
            raise InputError(f"{path} is empty; the model expects {wanted}")
        return tuple(0 if size == -1 else size for size in declared)
    columns = len(rows[0][1])
    for number, row in rows:
        if len(row) != columns:
            raise InputError(f"{path}:{number}: {len(row)} columns, but {columns} in the first line; correct it")
    first, *rest = declared
    if first not in (-1, len(rows)):
        raise InputError(f"{path}: {len(rows)} lines; the model expects {first}, for {wanted}")
    if rest.count(-1) > 1:
        raise InputError(
            f"{path}: {wanted} has several axes of free size, which CSV cannot represent; use another client"
        )
    known = math.prod(size for size in rest if size != -1)
    fits = columns == known if -1 not in rest else known > 0 and columns % known == 0
    if not fits:
        how = f"a multiple of {known}" if -1 in rest else str(known)
        raise InputError(f"{path}: {columns} columns; the model expects {how}, for {wanted}")
    return (len(rows), *(columns // known if size == -1 else size for size in rest))


def _converter(datatype: str) -> Callable[[str], object]:
    if datatype == "BYTES":
        return lambda text: text.encode()
    if datatype == "BOOL":
        return _bool
    dtype = numpy_type(datatype)
    if dtype.kind == "f":
        return lambda text: _float(text, dtype)
    return lambda text: _whole(text, dtype)


def _bool(text: str) -> bool:
    try:
        return _BOOLS[text.strip().lower()]
    except KeyError as error:
        raise ValueError(text) from error


def _float(text: str, dtype: np.dtype[Any]) -> float:
    if "_" in text or not text.isascii():  # float() would accept these
        raise ValueError(text)
    value = float(text)
    if math.isfinite(value) and not np.isfinite(dtype.type(value)):
        raise OverflowError(text)
    return value


def _whole(text: str, dtype: np.dtype[Any]) -> int:
    value = whole_number(text)  # by default, numpy.savetxt writes integers as 3.000e+00
    limits = np.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise OverflowError(text)
    return value


def _words(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
