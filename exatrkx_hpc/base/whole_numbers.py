"""Integers in text, exact for 64 bits, signed and unsigned: labels and IDs never pass through a float."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64] | NDArray[np.uint64]
"""Whole numbers, all exact."""

#: ASCII digits only: int() also accepts underscores and the digits of other scripts.
_PLAIN: Final = re.compile(r"[+-]?[0-9]{1,400}")
_POINTED: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
#: From here on, a number that was a float64 may be rounded.
_EXACT: Final = 2**53
#: Maximum number of characters of a number; bounds the work.
_DIGITS: Final = 400


def whole_number(text: str) -> int:
    """Return the integer in a text such as `7` or `-1`, or `3.000e+00` (float notation, below 2^53 only).

    Raises ValueError with the reason for any other text.
    """
    word = text.strip()
    shown = repr(word[:40])
    if len(word) > _DIGITS:
        raise ValueError(f"{shown} is longer than any number")
    if _PLAIN.fullmatch(word):
        return int(word)
    if not _POINTED.fullmatch(word):
        raise ValueError(f"{shown} is not an integer" if word else "a blank line")
    exact = Decimal(word)
    if exact.adjusted() > 20 or abs(exact) >= _EXACT:
        raise ValueError(f"{shown} is written as a float, which is not exact from 2^53 on")
    if exact != exact.to_integral_value():
        raise ValueError(f"{shown} is not an integer")
    return int(exact)


def whole_numbers(lines: Sequence[str], *, first: int) -> Integers:
    """Return one integer per line, int64 `[N]`, or uint64 `[N]` if one is 2^63 or more.

    Raises ValueError `LINE: REASON`; line numbers start at `first`.
    """
    numbers = [int(line) if _PLAIN.fullmatch(line) else _told(line, place) for place, line in enumerate(lines, first)]
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low >= -(2**63) and high < 2**63:
        return np.array(numbers, dtype=np.int64)
    if low >= 0 and high < 2**64:
        return np.array(numbers, dtype=np.uint64)
    wide = next((place for place, number in enumerate(numbers) if not -(2**63) <= number < 2**64), None)
    if wide is not None:
        raise ValueError(f"{wide + first}: {str(numbers[wide])[:40]} does not fit into 64 bits")
    place = next(place for place, number in enumerate(numbers) if number < 0)
    raise ValueError(f"{place + first}: {numbers[place]} is negative, in a column with numbers of 2^63 and more")


def _told(line: str, place: int) -> int:
    try:
        return whole_number(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
