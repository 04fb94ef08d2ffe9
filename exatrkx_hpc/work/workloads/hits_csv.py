"""Hits as a CSV file: one hit per line, three numbers, no header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.hits_numpy import COLUMNS

Float32 = NDArray[np.float32]

_WANTED: Final = "a hit is r/3000,phi/pi,z/400, without a header"
#: float() also accepts underscores and digits of other scripts; in a table, these are not numbers.
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA: Final = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_SEPARATORS: Final = ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars"), (None, "spaces"))
_OTHER_FILES: Final = (
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it with gunzip"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; save it as CSV"),
)


def parse_csv(path: Path, data: bytes) -> Float32:
    """Return the hits in the text of the file at `path`, float32 `[N, 3]`, contiguous and finite; empty text is N = 0.

    Accepts a byte-order mark, blank lines at the end and the line ends of any system. Raises InputError, with the file
    and the line, unless every line has three finite numbers.
    """
    # The conversion of digits takes nearly all of the time; np.fromstring and float() are not faster.
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise _not_text(path, data, error) from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        return np.empty((0, COLUMNS), dtype=np.float32)
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes an infinity and is refused below
            hits = np.loadtxt(lines, dtype=np.float32, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        raise _complaint(path, lines) from None
    # loadtxt skips blank lines, so the check includes the number of rows.
    if hits.shape != (len(lines), COLUMNS) or not np.isfinite(hits).all():
        raise _complaint(path, lines)
    return np.ascontiguousarray(hits)


def _not_text(path: Path, data: bytes, error: UnicodeDecodeError) -> InputError:
    for mark, said in _OTHER_FILES:
        if data.startswith(mark):
            return InputError(f"{path} {said}; {_WANTED}")
    line = data.count(b"\n", 0, error.start) + 1
    return InputError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not text in UTF-8; {_WANTED}")


def _complaint(path: Path, lines: list[str]) -> InputError:
    """Find the first bad line with a slow check, and return the error for it."""
    for number, line in enumerate(lines, start=1):
        fault = _fault(line)
        if fault:
            return InputError(f"{path}:{number}: {fault}; {_WANTED}")
    return InputError(f"{path}: cannot be read as numbers; {_WANTED}")


def _fault(line: str) -> str | None:
    if not line.strip():
        return "a blank line"
    if "\0" in line:
        return "a NUL character, as in UTF-16 text or a corrupt file"
    values = [value.strip() for value in line.split(",")]
    if len(values) != COLUMNS:
        return f"{len(values)} column{'s' if len(values) > 1 else ''}, not {COLUMNS}{_hint(line, values)}"
    for value in values:
        if not _NUMBER.fullmatch(value) and not _NOT_FINITE.fullmatch(value):
            quoted = value[:1] in {'"', "'"} and len(value) > 1
            return f"{value[:40]!r} is not a number{': remove the quotes' if quoted else ''}"
        with np.errstate(over="ignore"):
            if not np.isfinite(np.float32(value)):
                return f"{value[:40]} is not finite in single precision"
    return None


def _hint(line: str, values: list[str]) -> str:
    """Return the likely cause for a line without three columns, to append to the message."""
    if len(values) == COLUMNS + 1 and not values[-1]:
        return " (there is a comma at the end)"
    for mark, name in _SEPARATORS:
        found = [value.strip() for value in line.split(mark)]
        if len(found) > 1 and all(_DECIMAL_COMMA.fullmatch(value) or _NUMBER.fullmatch(value) for value in found):
            decimal = next((value for value in found if "," in value), None)
            comma = f", and {decimal[:40]!r} has a decimal comma" if decimal else ""
            return f" (the values are separated by {name}, not by commas{comma})"
    if len(values) == 2 * COLUMNS and all(re.fullmatch("[+-]?[0-9]+", value) for value in values):
        return " (are these decimal commas?)"
    return ""
