"""What this run reports to the monitor about the servers: answers and failures by server.

A deadline that passed counts if the answer names the server. If the client itself gave up, nothing names it.
"""

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
_FAILURES: Final = frozenset({Cause.TORN, Cause.DEADLINE, Cause.FAULT, Cause.REFUSED})


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
        if cause in _FAILURES:
            self._add(member, MemberCounts(failures=1))

    def _add(self, member: str, count: MemberCounts) -> None:
        if member:
            self._counts[member] = self._counts.get(member, MemberCounts()) + count
            self._changed = True

    def write(self, *, last: bool = False) -> None:
        """Write the counts if they changed: every few seconds, and at the end of the run, which `last` says.

        A report that cannot be written costs no event; it is tried again.
        """
        now = self._clock()
        if self._folder is None or not self._changed or (now < self._next and not last):
            return
        self._next = now + _INTERVAL
        with contextlib.suppress(OSError):
            write_member_report(self._folder, self._client, self._counts)
            self._changed = False
