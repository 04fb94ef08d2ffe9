"""A run of clients and the end of the job whose servers it asks: a warning before, the reason after."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, IncompleteRun
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.launch.events import EndpointJobEnded, JobEndsFirst
from exatrkx_hpc.work.run.progress import ShowProgress, Tally

#: In seconds. The current rate of a run is that of such a time.
_EVERY: Final = 60.0


class JobEnd:
    """Compares the events that are left with the time that the job has left."""

    def __init__(
        self,
        job_info: Callable[[], JobInfo],
        tell: Tell,
        *,
        notice: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask `job_info`; the servers end `notice` seconds before the time limit of their job."""
        self._job_info, self._tell, self._notice, self._clock = job_info, tell, notice, clock
        self._tally: Tally | None = None
        self._before: tuple[float, int] | None = None
        self._warned = False
        #: The facts of the last look.
        self.info: JobInfo | None = None

    def note(self, tally: Tally) -> None:
        """Note the progress of the run; never waits."""
        self._tally = tally
        if self._before is None:
            self._before = self._clock(), tally.left

    def look(self) -> None:
        """Ask for the job, and warn once if it ends first at the rate since the last look."""
        with contextlib.suppress(ExatrkxError, OSError):  # what cannot be asked warns nobody
            self.info = self._job_info()
        if self.info is None or self._tally is None or self._before is None:
            return
        now, left = self._clock(), self._tally.left
        at, before = self._before
        self._before = now, left
        rate = (before - left) / (now - at) if now > at else 0.0
        time_left = self.info.time_left
        if self._warned or self.info.state is not JobState.RUNNING or time_left is None or rate <= 0:
            return
        serves = max(0.0, time_left - self._notice)
        if left / rate > serves:
            self._warned = True
            self._tell(JobEndsFirst(job=self.info.id, events=left, needed=left / rate, left=serves))


@contextlib.contextmanager
def told_of_job_end(
    end: JobEnd, show: ShowProgress | None, tell: Tell, *, every: float = _EVERY
) -> Iterator[ShowProgress]:
    """Yield `show`, and look every `every` seconds inside the block; if a run stops and the job has ended, say why.

    A thread looks, because the scheduler may be slow.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every):
            end.look()

    def shown(tally: Tally) -> None:
        end.note(tally)
        if show is not None:
            show(tally)

    thread = threading.Thread(target=watch, name="job-end", daemon=True)
    thread.start()
    try:
        yield shown
    except (EndpointError, IncompleteRun):
        if end.info is not None and end.info.state.over:
            tell(EndpointJobEnded(job=end.info.id, state=end.info.state, reason=end.info.reason))
        raise
    finally:
        over.set()
        thread.join(1.0)
