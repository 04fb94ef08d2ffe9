"""The shared memory that servers leave in /dev/shm without a cleanup."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def abandoned(before: set[Path]) -> list[Path]:
    """Return the new segments that no process maps; a process that is ending gets up to 5 s."""
    until = time.monotonic() + 5
    while True:
        left = [path for path in set(SHARED_MEMORY.glob("exatrkx_*")) - before if not mapped(path)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def mapped(segment: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(segment) in (entry / "maps").read_text():
                return True
    return False
