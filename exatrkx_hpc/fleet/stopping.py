"""What the stop of a job waits for, as news at intervals."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.fleet.endings import of_lost_node
from exatrkx_hpc.fleet.events import JobStopping
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.launch.run_dir import RunDir

#: In seconds.
_INTERVAL = 10.0


@contextlib.contextmanager
def stop_news(
    run_dir: RunDir, job_info: Callable[[], JobInfo], tell: Tell, *, interval: float = _INTERVAL
) -> Iterator[None]:
    """Tell every `interval` seconds inside the block which servers and nodes a stop waits for.

    A thread does so, because the block waits for the scheduler.
    """
    ended, began = threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(interval):
            with contextlib.suppress(ExatrkxError, OSError):  # the block raises the errors of the stop
                news = _news(run_dir, job_info(), time.monotonic() - began)
                if not ended.is_set():
                    tell(news)

    thread = threading.Thread(target=report, name="stop-news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)


def _news(run_dir: RunDir, info: JobInfo, seconds: float) -> JobStopping:
    living = [record for record in read_records(run_dir) if record.state != "gone"]
    lost = {record.node for record in living if of_lost_node(record, info)}
    return JobStopping(
        job=run_dir.job,
        seconds=seconds,
        state=info.state,
        servers=tuple(record.server for record in living if record.node not in lost),
        lost=tuple(sorted(lost)),
    )
