"""The monitor loop: observe the servers, reconcile, render, apply; once per interval."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from exatrkx_hpc.base.errors import EndpointError, LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.balancer.base import Balancer
from exatrkx_hpc.fleet.endpoint import EndpointRecord, remove_endpoint, write_endpoint
from exatrkx_hpc.fleet.events import (
    BalancerEnded,
    BalancerReloaded,
    EndpointOpened,
    MemberChanged,
    MetricsStoreEnded,
    MetricsStoreStarted,
    NotApplied,
)
from exatrkx_hpc.fleet.members.outliers import OutlierDetection
from exatrkx_hpc.fleet.members.probe import Prober
from exatrkx_hpc.fleet.members.reconcile import Member, changes
from exatrkx_hpc.fleet.sidecars.base import Sidecar
from exatrkx_hpc.fleet.status import observe
from exatrkx_hpc.fleet.view import View, job_news
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.launch.scheduler import SchedulerSilentError

#: How long, in seconds, the scheduler may answer without knowing the job before the monitor gives up.
_LOST = 10.0


class Monitor:
    """Maintains the endpoint of one job; `tell` gets each change as news."""

    def __init__(
        self,
        *,
        run_dir: RunDir,
        job_info: Callable[[], JobInfo],
        balancer: Balancer,
        metrics_store: Sidecar | None = None,
        settings: MonitorSection,
        tell: Tell,
        patience: float = _LOST,
        judge: OutlierDetection | None = None,
    ) -> None:
        """Prepare the monitor of the job whose run directory is `run_dir`; nothing runs before serving().

        The monitor starts and stops the given balancer and metrics store. If the scheduler answers but does not know
        the job, the monitor waits for `patience` seconds, or as long as the job has ready servers. `judge` judges the
        servers by their answers.
        """
        self._run_dir = run_dir
        self._job_info = job_info
        self._settings = settings
        self.tell = tell
        self._patience = patience
        self._view = View(info=JobInfo(id=run_dir.job, state=JobState.UNKNOWN), members=())
        self._balancer = balancer
        self._store = metrics_store
        self._applied: tuple[str, ...] | None = None
        self._troubles: dict[str, str] = {}
        self._scraped: tuple[str, ...] | None = None
        self._known = time.monotonic()
        self._prober = Prober()
        self._judge = judge

    @property
    def view(self) -> View:
        """The result of the last tick."""
        return self._view

    @property
    def endpoint(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return self._balancer.listen.grpc

    @property
    def logs(self) -> Path:
        """The folder of the servers' logs."""
        return self._run_dir.logs

    @contextmanager
    def serving(self) -> Iterator[Monitor]:
        """Run the balancer inside the block; on exit, stop the balancer and the metrics store."""
        with _only_monitor_of(self._run_dir):
            try:
                self._balancer.start(())
                listen = self._balancer.listen
                self.tell(EndpointOpened(job=self._run_dir.job, grpc=listen.grpc, http=listen.http))
                yield self
            finally:
                remove_endpoint(self._run_dir)
                self._balancer.stop()
                self._prober.close()
                if self._judge is not None:
                    self._judge.close()
                if self._store is not None:
                    self._store.stop()

    def watch(self, *, stop: threading.Event) -> View:
        """Run a tick at each interval until the job is over or `stop` is set; return the last view."""
        while not stop.is_set():
            self.tick()
            if self._view.job.over:
                break
            stop.wait(self._settings.interval)
        return self._view

    def tick(self) -> View:
        """Observe once, reconcile, and apply the changes; raises LaunchError if the job stays unknown."""
        before = self._view
        now = self._look(before.members)
        self._apply(now)
        self._report(before, now)
        # Set the view last: when a caller sees a ready member, the endpoint already includes that member.
        self._view = now
        self._refuse_lost(now)
        return now

    def refuse_ended(self) -> None:
        """Raise LaunchError if the job has already ended; the message says how."""
        if (now := self._look(())).job.over:
            raise LaunchError(f"{now.sentence}; nothing to monitor")

    def _look(self, previous: tuple[Member, ...]) -> View:
        info, members = observe(
            self._ask(),
            self._run_dir,
            timeout=self._settings.probe_timeout,
            previous=previous,
            tolerance=self._settings.tolerance,
            ask=self._prober,
            judge=self._judge or tuple,
        )
        return View(info=info, members=members)

    def _ask(self) -> JobInfo:
        try:
            return self._job_info()
        except SchedulerSilentError as error:  # the scheduler has not answered yet, but may later
            why = str(error).split("; ")[0]
            return JobInfo(id=self._run_dir.job, state=JobState.UNKNOWN, reason=why, answered=False)

    def _refuse_lost(self, view: View) -> None:
        now = time.monotonic()
        if view.job is not JobState.UNKNOWN or not view.info.answered or view.ready:
            self._known = now
        elif now - self._known > self._patience:
            raise LaunchError(view.sentence)

    def _apply(self, view: View) -> None:
        """Apply the changes; report a new failure once, and retry at the next tick."""
        for part, step in (("balancer", self._balance), ("prometheus", self._scrape)):
            try:
                step(view)
                self._troubles.pop(part, None)
            except (EndpointError, OSError) as error:
                said = f"{error.strerror} below {self._run_dir}" if isinstance(error, OSError) else str(error)
                if self._troubles.get(part) != said:
                    self.tell(NotApplied(job=self._run_dir.job, part=part, reason=said))
                self._troubles[part] = said

    def _balance(self, view: View) -> None:
        if not self._balancer.alive():
            name = self._balancer.name
            self.tell(BalancerEnded(job=self._run_dir.job, balancer=name, endpoint=self.endpoint))
            self._balancer.start(view.ready)
        wanted = tuple(member.grpc for member in view.ready)
        if wanted != self._applied:
            self._balancer.update(view.ready)
            self._write_endpoint(view)
            self._applied = wanted
            self.tell(BalancerReloaded(job=self._run_dir.job, servers=_names(view.ready)))

    def _scrape(self, view: View) -> None:
        """Start Prometheus with the first ready server, then update its targets."""
        if self._store is None:
            return
        # A server that does not answer stays a target, so that Prometheus shows the server as down.
        targets = tuple(m for m in view.members if m.state != "starting" and m.record.state != "gone")
        if self._scraped is not None and not self._store.alive():
            self.tell(MetricsStoreEnded(job=self._run_dir.job))
            self._scraped = None
        if self._scraped is None and view.ready:
            self._store.start(targets)
            self.tell(MetricsStoreStarted(job=self._run_dir.job, address=self._store.address))
        elif self._scraped is not None and _addresses(targets) != self._scraped:
            self._store.update(targets)
        else:
            return
        self._scraped = _addresses(targets)

    def _report(self, before: View, view: View) -> None:
        for member in changes(before.members, view.members):
            self.tell(
                MemberChanged(
                    job=self._run_dir.job,
                    server=member.name,
                    node=member.record.node,
                    state=member.state,
                    note=member.note,
                    ready=len(view.ready),
                )
            )
        if (changed := job_news(before.info, view.info)) is not None:
            self.tell(changed)

    def _write_endpoint(self, view: View) -> None:
        write_endpoint(
            self._run_dir,
            EndpointRecord(
                job=self._run_dir.job,
                grpc=self.endpoint,
                http=self._balancer.listen.http,
                prometheus=self._store.address if self._store is not None else "",
                metrics={member.name: member.metrics for member in view.ready},
                instances={member.name: member.record.instance for member in view.ready},
                ready=len(view.ready),
                monitor_pid=os.getpid(),
                updated=time.time(),
            ),
        )


def _names(members: tuple[Member, ...]) -> tuple[str, ...]:
    return tuple(member.name for member in members)


def _addresses(members: tuple[Member, ...]) -> tuple[str, ...]:
    """Return what Prometheus' targets depend on: a server may choose other ports at its next start."""
    return tuple(f"{member.name} {member.metrics}" for member in members)


@contextmanager
def _only_monitor_of(run_dir: RunDir) -> Iterator[None]:
    """Hold the monitor lock of the run directory; raises EndpointError if another monitor holds it."""
    with run_dir.monitor_lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EndpointError(
                f"another monitor is running for job {run_dir.job}; stop that monitor, or use its endpoint"
            ) from error
        yield
