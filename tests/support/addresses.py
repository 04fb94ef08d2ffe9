"""Addresses of this machine, so that tests can run side by side, also those of another run of the suite."""

from __future__ import annotations

import random


def own_address(*, last: int | None = None) -> str:
    """An address of this machine that no other test has. A farm counts on from its last number, which `last` gives."""
    return f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{last or random.randrange(1, 255)}"
