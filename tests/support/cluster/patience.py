"""Wait until a part of the cluster is ready; give up when it ends or a deadline passes."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.errors import ClusterError


def wait_for(
    there: Callable[[], bool],
    *,
    lives: Callable[[], bool] = lambda: True,
    what: Callable[[], str],
    deadline: float = 30.0,
    pause: float = 0.05,
) -> None:
    """Return as soon as `there()` is true.

    Raises ClusterError with `what()` as soon as `lives()` is not true, or after `deadline` seconds.
    """
    until = time.monotonic() + deadline
    while not there():
        if not lives() or time.monotonic() > until:
            raise ClusterError(what())
        time.sleep(pause)
