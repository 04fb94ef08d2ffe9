"""Wait in a test for a condition; the deadline is generous, because CI may be slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, what: str, deadline: float = 30.0) -> T:
    """Return the first true value of `condition`, or fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(0.02)
