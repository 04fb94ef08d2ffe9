"""Loopback addresses, so that tests can run in parallel, even in two runs of the suite at once."""

from __future__ import annotations

import random


def own_address(*, last: int | None = None) -> str:
    """Return a random loopback address for one test. `last` sets its last number, from which a farm counts up."""
    return f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{last or random.randrange(1, 255)}"
