"""A monitor in a thread of this program, where no signal interrupts it between two steps."""

from __future__ import annotations

import contextlib
import threading
import time

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.fleet.events import MonitorFailed
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.view import View

#: The scheduler is asked first, and Slurm may take a minute for each of two questions.
_START_DEADLINE = 150.0
#: The monitor's longest single steps are questions to Slurm and the balancer's end.
_STOP_DEADLINE = 180.0


class Watch:
    """Runs a monitor until it is stopped or its job is over."""

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
        """What the monitor's last look found."""
        return self._monitor.view

    @property
    def endpoint(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return self._monitor.endpoint

    def start(self) -> None:
        """Start the monitor; raises what it raised when it could not start, LaunchError when its job is over."""
        self._thread.start()
        if not self._serves.wait(_START_DEADLINE):
            raise EndpointError(f"the balancer did not start within {_START_DEADLINE:g} s; {self._where()}")
        self.raise_error()

    def wait_ready(self, servers: int, *, timeout: float) -> None:
        """Wait until `servers` servers are ready.

        Raises EndpointError when `timeout` seconds pass before, or when the job ends.
        """
        until = time.monotonic() + timeout
        while len(self.view.ready) < servers:
            self.raise_error()
            if self.view.job.over or self._ended.is_set():
                raise EndpointError(f"{self.view.sentence}, before its servers were ready; {self._where()}")
            given_up = [m for m in self.view.members if m.state == "gone" and "gave up" in m.note]
            if given_up:
                raise EndpointError(f"server {given_up[0].name} {given_up[0].note}; {self._where()}")
            if time.monotonic() > until:
                raise EndpointError(
                    f"only {len(self.view.ready)} of {servers} servers ready after {timeout:g} s; {self._where()}"
                )
            time.sleep(0.05)

    def wait(self) -> View:
        """Wait until the job is over, then return the last view.

        Raises what the monitor raised, and LaunchError when the job neither completed nor was cancelled.
        """
        # Not Thread.join(): in Python 3.11 a signal that interrupts it takes a living thread for ended.
        while not self._ended.wait(0.2):
            pass
        self.raise_error()
        if self.view.job.over and self.view.job not in (JobState.COMPLETED, JobState.CANCELLED):
            raise LaunchError(f"{self.view.sentence}; {self._where()}")
        return self.view

    def stop(self) -> None:
        """Stop the monitor with all that it started."""
        self._stop.set()
        if self._thread.ident is not None:
            self._ended.wait(_STOP_DEADLINE)

    def _run(self) -> None:
        try:
            self._monitor.refuse_ended()
            with self._monitor.serving():
                self._serves.set()
                self._monitor.watch(stop=self._stop)
        except BaseException as error:  # handed to the thread that waits for this one
            self._error = error
            with contextlib.suppress(OSError):  # who listened may be gone, too
                if self._serves.is_set():
                    self._monitor.tell(MonitorFailed(job=self.view.info.id, reason=str(error)))
        finally:
            self._serves.set()
            self._ended.set()

    def raise_error(self) -> None:
        """Raise what ended the monitor, if something did."""
        if isinstance(self._error, ExatrkxError | BrokenPipeError):
            raise self._error
        if self._error is not None:
            raise RuntimeError("the monitor failed") from self._error

    def _where(self) -> str:
        return f"the logs are in {self._monitor.logs}"
