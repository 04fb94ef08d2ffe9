"""Wait for the servers of a job; the time limit counts while the job runs, not while it waits in the queue."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.fleet.members.reconcile import Member, ready_members


class ReadyWait:
    """The wait for `wanted` of `servers` servers.

    The job has `timeout` seconds from its start and `queue_timeout` seconds in the queue, None for any time; a requeued
    job begins both anew.
    """

    def __init__(
        self,
        *,
        wanted: int,
        servers: int,
        timeout: float,
        queue_timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start to wait; `clock` returns seconds."""
        self.wanted = wanted
        self._servers = max(servers, wanted)
        self._timeout = timeout
        self._queue_timeout = math.inf if queue_timeout is None else queue_timeout
        self._clock = clock
        self._queued: float | None = clock()
        self._runs_since: float | None = None

    def over(self, info: JobInfo, members: Iterable[Member]) -> bool:
        """Return whether enough servers are ready.

        Raises EndpointError after the time limit, or if too many servers have given up.
        """
        now, seen = self._clock(), tuple(members)
        ready = len(ready_members(seen))
        if ready >= self.wanted:
            return True
        self._note(info.state, now)
        given_up = [member for member in seen if member.state == "gone" and "gave up" in member.note]
        if self._servers - len(given_up) < self.wanted:
            more = f" (and {len(given_up) - 1} more)" if len(given_up) > 1 else ""
            raise EndpointError(f"server {given_up[0].name} {given_up[0].note}{more}")
        if self._runs_since is not None and now - self._runs_since > self._timeout:
            raise EndpointError(
                f"only {ready} of {self.wanted} servers ready {self._timeout:g} s after the start of job {info.id}"
            )
        if self._queued is not None and now - self._queued > self._queue_timeout:
            raise EndpointError(
                f"job {info.id} is still {info.state.value} after {self._queue_timeout:g} s in the queue"
            )
        return False

    def _note(self, state: JobState, now: float) -> None:
        """Start and stop the two clocks; a state that is not known changes nothing."""
        if state is JobState.PENDING and self._runs_since is not None:
            self._runs_since, self._queued = None, now
        elif state is JobState.RUNNING and self._runs_since is None:
            self._runs_since, self._queued = now, None
