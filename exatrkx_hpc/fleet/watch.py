"""A monitor in its own thread, where no signal interrupts it between two steps."""

from __future__ import annotations

import threading
import time

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.fleet.events import MonitorFailed
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.readiness import ReadyWait
from exatrkx_hpc.fleet.view import View

#: In seconds. The monitor first queries the scheduler; Slurm may take a minute for each of two queries.
_START_DEADLINE = 150.0
#: In seconds. The longest single steps of the monitor are Slurm queries and the stop of the balancer.
_STOP_DEADLINE = 180.0


class Watch:
    """Runs a monitor in a thread until it is stopped or its job is over."""

    def __init__(self, monitor: Monitor) -> None:
        """Prepare; nothing runs before start()."""
        self._monitor = monitor
        self._stop = threading.Event()
        self._serves = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=False)

    @property
    def view(self) -> View:
        """The result of the monitor's last tick."""
        return self._monitor.view

    @property
    def endpoint(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return self._monitor.endpoint

    def start(self) -> None:
        """Start the monitor and wait for its balancer.

        Raises the monitor's error if it cannot start, LaunchError if its job is over, EndpointError after 150 s.
        """
        self._thread.start()
        if not self._serves.wait(_START_DEADLINE):
            raise EndpointError(f"the balancer did not start within {_START_DEADLINE:g} s; {self._where()}")
        self.raise_error()

    def wait_ready(
        self, servers: int, *, timeout: float, queue_timeout: float | None = None, of: int | None = None
    ) -> None:
        """Wait until `servers` of the `of` servers are ready, by default all of them.

        Raises EndpointError `timeout` seconds after the start of the job, after `queue_timeout` seconds in the queue,
        if the job or the monitor ends, or if too many servers gave up; raises the error of a failed monitor.
        """
        wait = ReadyWait(wanted=servers, servers=of or servers, timeout=timeout, queue_timeout=queue_timeout)
        while len(self.view.ready) < servers:
            self.raise_error()
            if self.view.job.over or self._ended.is_set():
                raise EndpointError(f"{self.view.sentence}, before its servers were ready; {self._where()}")
            try:
                wait.over(self.view.info, self.view.members)
            except EndpointError as error:
                raise EndpointError(f"{error}; {self._where()}") from error
            time.sleep(0.05)

    def wait(self) -> View:
        """Wait until the job is over, then return the last view.

        Raises the error of a failed monitor, and LaunchError if the job ended other than COMPLETED or CANCELLED.
        """
        # Not Thread.join(): in Python 3.11, a join() that a signal interrupts marks the running thread as ended.
        while not self._ended.wait(0.2):
            pass
        self.raise_error()
        if self.view.job.over and self.view.job not in (JobState.COMPLETED, JobState.CANCELLED):
            raise LaunchError(f"{self.view.sentence}; {self._where()}")
        return self.view

    def stop(self) -> None:
        """Stop the monitor with all that it started; wait up to 180 s for its end.

        Also stops the balancer that a failed monitor left serving.
        """
        self._stop.set()
        if self._thread.ident is not None and self._ended.wait(_STOP_DEADLINE) and self._monitor.leaving:
            self._monitor.leaving = False
            self._monitor.end_left()

    def leave(self) -> None:
        """End the monitor and leave its balancer serving, with its last servers; wait up to 180 s."""
        self._monitor.leaving = True
        self._stop.set()
        if self._thread.ident is not None:
            self._ended.wait(_STOP_DEADLINE)

    def _run(self) -> None:
        try:
            self._monitor.refuse_ended()
            with self._monitor.serving():
                self._serves.set()
                self._monitor.watch(stop=self._stop)
        except BaseException as error:  # raised in the thread that waits for this one
            self._error = error
            if self._serves.is_set():
                serves = self.endpoint if self._monitor.leaving else ""
                self._monitor.tell(MonitorFailed(job=self.view.info.id, reason=str(error), endpoint=serves))
        finally:
            self._serves.set()
            self._ended.set()

    def raise_error(self) -> None:
        """Raise the error that ended the monitor, if any; RuntimeError for an unexpected one."""
        if isinstance(self._error, ExatrkxError):
            raise self._error
        if self._error is not None:
            raise RuntimeError("the monitor failed") from self._error

    def _where(self) -> str:
        return f"the logs are in {self._monitor.logs}"
