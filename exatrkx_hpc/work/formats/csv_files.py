"""An event as a CSV file: one hit a line, three numbers, no header."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exatrkx_hpc.errors import InputError
from exatrkx_hpc.work.formats.values import COLUMNS, Float32

_WANTED = "a hit is r/3000,phi/pi,z/400, without a header"


def parse_csv(path: Path, data: bytes) -> Float32:
    """Return the hits in the text of the file at `path`, float32 `[N, 3]`, contiguous and finite; no text is N = 0.

    Raises InputError, with the file and the line, for anything but three finite numbers on every line.
    """
    # Nearly all of its time is the conversion of the digits, which np.fromstring and float() do no faster.
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
