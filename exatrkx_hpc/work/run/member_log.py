"""What this run reports to the monitor about the servers: answers, failures and deadlines by server."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.member_reports import MemberCounts, write_member_report
from exatrkx_hpc.work.inference.retry import Cause

#: Seconds between two reports.
_INTERVAL: Final = 2.0
#: Failed deliveries that the server may have caused. A refusal is one of them: a server may send wrong answers to all.
_FAILURES: Final = frozenset({Cause.TORN, Cause.FAULT, Cause.REFUSED})


class MemberLog:
    """Counts by server, written to `folder` (the run directory of the farm) every few seconds; no folder: nowhere."""

    def __init__(self, folder: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Count from zero, under a name that no other run has."""
        self._folder = folder
        self._client = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._counts: dict[str, MemberCounts] = {}
        self._clock = clock
        self._changed = False
        self._next = 0.0

    def answered(self, member: str) -> None:
        """Note a good answer of the server at `member` (`host:port`); '' if the balancer did not name it."""
        self._add(member, MemberCounts(answers=1))

    def failed(self, member: str, cause: Cause) -> None:
        """Note a delivery that failed for `cause`."""
        if cause is Cause.DEADLINE:
            self._add(member, MemberCounts(timeouts=1))
        elif cause in _FAILURES:
            self._add(member, MemberCounts(failures=1))

    def _add(self, member: str, count: MemberCounts) -> None:
        if member:
            self._counts[member] = self._counts.get(member, MemberCounts()) + count
            self._changed = True

    def write(self) -> None:
        """Write the counts, if they changed and the last report is old enough; a report is worth no failed event."""
        now = self._clock()
        if self._folder is None or not self._changed or now < self._next:
            return
        self._next, self._changed = now + _INTERVAL, False
        with contextlib.suppress(OSError):
            write_member_report(self._folder, self._client, self._counts)
