"""The heartbeat of a run over several nodes: a file that the run touches while it waits for the nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: File name in OUT/shards.
NAME: Final = "beat"
#: In seconds; a file system may show changes of another node some seconds late.
_SILENCE: Final = 90.0
_LOOK: Final = 0.2


def touch(path: Path) -> None:
    """Touch the heartbeat file; raises OSError."""
    path.touch()


def is_heard(
    path: Path,
    *,
    silence: float = _SILENCE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for the next heartbeat and return True; False if there is none for `silence` seconds."""
    before, until = _stamp(path), clock() + silence
    while clock() < until:
        sleep(_LOOK)
        if _stamp(path) != before:
            return True
    return False


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
