"""All events through the endpoint: worker processes that pull, labels as files, one report.

`run_clients` is the whole story; `coordinator.py` keeps the workers busy and replaces those that die.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.errors import ConfigError, ExatrkxError, IncompleteRun, OutputError
from exatrkx_hpc.files import write_whole
from exatrkx_hpc.work.client import MODEL, Client, checked_address
from exatrkx_hpc.work.coordinator import Coordinator
from exatrkx_hpc.work.events import EventFile, find_events
from exatrkx_hpc.work.report import Report, ShowProgress
from exatrkx_hpc.work.worker import Task

__all__ = ["Settings", "ShowProgress", "StoppedRun", "run_clients"]

#: A file system that knows no locks (Lustre without the mount option flock) is used without one.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run wants; raises ConfigError at once for a value that cannot work.

    `server` is `host:port`, `events` the folder of `*.csv`, `out` where `labels/` and `report.json` go (made
    if missing; what is there of the same events is removed once the endpoint is ready). `workers` processes
    keep `in_flight` requests each.
    `request_timeout` is one attempt's deadline, `patience` how long a request is repeated after its first
    failure, `deadline` how long to wait for the endpoint at the start; all in seconds.
    """

    server: str
    events: Path
    out: Path
    workers: int = 1
    in_flight: int = 4
    request_timeout: float = 60.0
    patience: float = 120.0
    deadline: float = 10.0
    model: str = MODEL

    def __post_init__(self) -> None:
        checked_address(self.server)
        for flag, value in (("-n", self.workers), ("-j", self.in_flight)):
            if value < 1:
                raise ConfigError(f"{flag} must be at least 1, not {value}")
        if self.request_timeout <= 0 or self.patience < 0 or self.deadline <= 0:
            raise ConfigError("the request timeout and the deadline must be above 0 s, the patience at least 0 s")
        # realpath, because Path.resolve fails on a link to itself; making the folder says what is wrong with it.
        if os.path.realpath(self.labels) in {os.path.realpath(self.events), os.path.realpath(self.events / "truth")}:
            raise ConfigError(f"labels in {self.labels} would overwrite the events; choose another -o")

    @property
    def labels(self) -> Path:
        """The folder of the label files, `OUT/labels`."""
        return self.out / "labels"

    @property
    def report(self) -> Path:
        """The file of the report, `OUT/report.json`."""
        return self.out / "report.json"


class StoppedRun(IncompleteRun):
    """The run was stopped before every event was tried; `report` holds what was done until then."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def run_clients(settings: Settings, progress: ShowProgress | None = None) -> Report:
    """Send every event of the folder to the endpoint, write its labels, and return the report.

    Every event was tried when it returns: look at `report.failed`, or call `report.check()`. The report is
    also in OUT/report.json. SIGTERM and SIGINT (Ctrl-C) stop the run; what is written stays whole.

    Raises InputError for a folder without events, EndpointError or ModelError when the endpoint is not ready
    at the start (then the results of an earlier run are still there), ConfigError when so many workers cannot
    be started, OutputError when a result cannot be written or another run writes to OUT, StoppedRun
    (an IncompleteRun, with the report so far) after a signal or when the endpoint stays dead. Works in a
    notebook, where a loop already runs.
    """
    events = find_events(settings.events)
    _make_out(settings)
    with _only_run_in(settings.out):
        return _run_clients(settings, events, progress)


def _run_clients(settings: Settings, events: Sequence[EventFile], progress: ShowProgress | None) -> Report:
    run = Coordinator(
        _task(settings),
        events,
        workers=settings.workers,
        show=progress or (lambda tally: None),
    )
    try:
        _blocking(settings, events, run)
    finally:
        _sweep(settings.labels)
    report = run.report()
    if run.error is not None:
        with contextlib.suppress(ExatrkxError):  # the disk may be what is broken
            _write_report(settings, report)
        raise run.error
    _write_report(settings, report)
    if report.stopped is not None:
        counts = f"{report.done} of {report.events} events have labels, {len(report.failed)} failed"
        raise StoppedRun(f"{report.stopped}; {counts}, {report.not_tried} not tried ({settings.report})", report)
    return report


def _task(settings: Settings) -> Task:
    return Task(
        server=settings.server,
        model=settings.model,
        labels=str(settings.labels.resolve()),
        in_flight=settings.in_flight,
        request_timeout=settings.request_timeout,
        patience=settings.patience,
    )


def _make_out(settings: Settings) -> None:
    try:
        settings.labels.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(settings.out, error) from error


@contextlib.contextmanager
def _only_run_in(out: Path) -> Iterator[None]:
    """Hold OUT/.lock; raises OutputError when another run holds it. It goes with the process that dies."""
    try:
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unusable(out, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another run-clients writes to {out}; wait for its end, or choose another -o") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _unusable(out, error) from error
        yield
    finally:
        os.close(lock)


def _clear(settings: Settings, events: Sequence[EventFile]) -> None:
    """Remove what an earlier run said of these events: a label file that is there is of this run."""
    try:
        settings.report.unlink(missing_ok=True)
        for event in events:
            (settings.labels / f"{event.name}.csv").unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(settings.out, error) from error


def _unusable(out: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot use {out} for results: {error.strerror} ({error.filename}); choose another -o")


def _sweep(labels: Path) -> None:
    """Remove the parts that killed workers left beside the label files."""
    with contextlib.suppress(OSError):
        for part in labels.glob(".*.csv.*"):
            part.unlink(missing_ok=True)


def _write_report(settings: Settings, report: Report) -> None:
    try:
        write_whole(settings.report, report.to_json())
    except OSError as error:
        raise OutputError(f"cannot write {settings.report}: {error.strerror}") from error


async def _run(settings: Settings, events: Sequence[EventFile], run: Coordinator) -> None:
    async with Client(settings.server, model=settings.model) as client:
        await client.check(settings.deadline)
    _clear(settings, events)  # not before: a mistyped address costs no results
    with _signals(run):
        await run.run()


def _blocking(settings: Settings, events: Sequence[EventFile], run: Coordinator) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_run(settings, events, run))
        return
    # A notebook: its loop is busy with this very call, so the work gets a thread and a loop of its own.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(lambda: asyncio.run(_run(settings, events, run)))
        try:
            future.result()
        except KeyboardInterrupt:
            run.interrupt("stopped by SIGINT")
            future.result()


@contextlib.contextmanager
def _signals(run: Coordinator) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the run; afterwards the handlers are the former ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in former:
        loop.add_signal_handler(number, run.stop, f"stopped by {number.name}")
    try:
        yield
    finally:
        for number, handler in former.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
