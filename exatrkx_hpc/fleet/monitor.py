"""The monitor loop: observe the servers, reconcile, render, apply; once per interval.

The endpoint fails static: what the monitor cannot observe or apply stays as it was, and is tried again at the next
look. Only the end of the job as the scheduler tells it, a server's own word, its silence, or the judgement on its
answers takes a server out, in this order.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError, LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Tell, unfailing
from exatrkx_hpc.base.process_id import boot_id, host_name, process_id
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.balancer.base import Balancer
from exatrkx_hpc.fleet.endpoint import EndpointRecord, point_latest, read_endpoint, remove_endpoint, write_endpoint
from exatrkx_hpc.fleet.events import (
    BalancerEnded,
    BalancerReloaded,
    BalancerWarned,
    EndpointOpened,
    MemberChanged,
    NotApplied,
    NotObserved,
)
from exatrkx_hpc.fleet.lease import LeaseLost, Renew, only_monitor_of
from exatrkx_hpc.fleet.members.outliers import OutlierDetection
from exatrkx_hpc.fleet.members.probe import Prober
from exatrkx_hpc.fleet.members.reconcile import Member, changes
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.fleet.sidecars.aside import Aside
from exatrkx_hpc.fleet.sidecars.base import Sidecar
from exatrkx_hpc.fleet.status import observe
from exatrkx_hpc.fleet.view import View, job_news
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.launch.scheduler import SchedulerSilentError

#: How long, in seconds, the scheduler may answer without knowing the job before the monitor gives up.
_LOST: Final = 10.0
#: Seconds between two heartbeats in endpoint.json, and between two renewals of the lease.
_BEAT: Final = 5.0
#: In seconds. A monitor of which every look failed for so long, and not because of its machine, has a fault that no
#: look will mend. It ends, so that a person sees the fault; its balancer serves on.
_BLIND: Final = 600.0
#: Faults of the machine, which may pass: no file, process, thread or memory is left; a file system or network failed.
_OF_THE_MACHINE: Final = (OSError, RuntimeError, MemoryError)


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
        self.tell = unfailing(tell)
        self._patience = patience
        self._view = View(info=JobInfo(id=run_dir.job, state=JobState.UNKNOWN), members=())
        self._balancer = balancer
        self._store = None if metrics_store is None else Aside(metrics_store, job=run_dir.job, tell=self.tell)
        self._applied: tuple[str, ...] | None = None
        self._updated = 0.0
        self._published: tuple[object, ...] | None = None
        self._pointed = False
        self._reported = False
        self._down = False
        self._beaten = 0.0
        self._held = 0.0
        self._troubles: dict[str, str] = {}
        self._known = time.monotonic()
        self._prober = Prober()
        self._judge = judge
        self._renew: Renew = lambda: None
        #: Whether the balancer serves on when serving() ends: a person asked for it, or the monitor failed.
        self.leaving = False
        #: Whether a monitor of another machine has taken over: clients use its endpoint.
        self._lost = False

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
        """Run the balancer inside the block: that of an earlier monitor if one was left, otherwise a new one.

        On exit, stop the balancer, unless `leaving` is set, and the metrics store.
        """
        with only_monitor_of(self._run_dir, self.tell) as self._renew:
            try:
                adopted = self._balancer.adopt()
                if adopted:
                    self._view = self._remembered()
                    if self._judge is not None:
                        self._judge.adopt(self._view.members)
                else:
                    self._balancer.start(())
                listen = self._balancer.listen
                self.tell(EndpointOpened(job=self._run_dir.job, grpc=listen.grpc, http=listen.http, adopted=adopted))
                yield self
            finally:
                self._close()

    def end_left(self) -> None:
        """Stop the balancer that an earlier monitor left, if there is one."""
        if self._balancer.adopt():
            self._stop_balancer()

    def watch(self, *, stop: threading.Event) -> View:
        """Run a tick at each interval until the job is over or `stop` is set; return the last view.

        A tick that fails is reported once, and the next one tries again. Raises LaunchError if the job stays unknown,
        EndpointError if another monitor has taken over, and the error of the ticks if each failed for 10 minutes.
        """
        good = time.monotonic()
        while not stop.is_set():
            try:
                self.tick()
                good = time.monotonic()
            except LaunchError:
                raise
            except Exception as error:
                self._survive(error, blind=time.monotonic() - good)
            if self._view.job.over:
                break
            stop.wait(self._settings.interval)
        return self._view

    def tick(self) -> View:
        """Observe once, reconcile, and apply the changes; raises LaunchError if the job stays unknown."""
        before = self._view
        now = self._look(before.members)
        self._apply(now)
        # An adopted endpoint has servers from the start; people are told of them like of new ones.
        self._report(before if self._reported else replace(before, members=()), now)
        self._reported = True
        # Set the view last: when a caller sees a ready member, the endpoint already includes that member.
        self._view = now
        self._refuse_lost(now)
        return now

    def refuse_ended(self) -> None:
        """Raise LaunchError if the job has already ended; the message says how. End what an earlier monitor left."""
        if (now := self._look(())).job.over:
            self.end_left()
            self._prober.close()
            raise LaunchError(f"{now.sentence}; nothing to monitor")

    def _close(self) -> None:
        self._prober.close()
        if self._judge is not None:
            self._judge.close()
        if self.leaving and not self._lost:
            self._balancer.leave()
        else:
            self._stop_balancer()
        if self._store is not None:
            self._store.stop()

    def _stop_balancer(self) -> None:
        try:
            remove_endpoint(self._run_dir)
        except OSError as error:  # a reader finds no balancer at its address
            self._trouble("endpoint.json", NotApplied, error)
        self._balancer.stop()

    def _survive(self, error: Exception, *, blind: float) -> None:
        """Report an error that ended a tick; raise it if every tick has failed for 10 minutes and none will do better.

        The balancer then serves on. Also raise it if this is no longer the job's monitor: one of this machine has
        adopted the balancer; one of another machine has its own, and this one stops.
        """
        if isinstance(error, LeaseLost) and not error.here:
            self._lost = True
        elif isinstance(error, LeaseLost) or (blind > _BLIND and not isinstance(error, _OF_THE_MACHINE)):
            self.leaving = True
        else:
            self._trouble("monitor", NotObserved, error)
            return
        raise error

    def _remembered(self) -> View:
        """Return the members that the adopted balancer serves, as its earlier monitor published them."""
        record = read_endpoint(self._run_dir)
        served = record.instances if record is not None else {}
        members = tuple(
            Member(record=one, state="ready", note="of an earlier monitor")
            for one in read_records(self._run_dir)
            if one.state == "starting" and served.get(one.server) == one.instance
        )
        return View(info=self._view.info, members=members)

    def _look(self, previous: tuple[Member, ...]) -> View:
        """Observe the job and its servers; what cannot be observed is as in `previous`."""
        info = self._ask()
        unread: dict[str, str] = {}
        try:
            with socket.socket():  # without a free file, every server would look dead
                pass
            seen, members = observe(
                info,
                self._run_dir,
                timeout=self._settings.probe_timeout,
                previous=previous,
                tolerance=self._settings.tolerance,
                ask=self._prober,
                judge=self._judge or tuple,
                unreadable=lambda path, why: unread.update({path.stem: why}),
            )
        except _OF_THE_MACHINE as error:
            self._trouble("servers", NotObserved, error)
            return View(info=info, members=previous)
        self._well("servers")
        self._note_unread(unread)
        return View(info=seen, members=members)

    def _note_unread(self, unread: dict[str, str]) -> None:
        """Report records that cannot be read, once as long as the same ones fail for the same reason."""
        if not unread:
            self._well("records")
            return
        some = ", ".join(sorted(unread)[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
        self._trouble("records", NotObserved, OSError(0, f"{some}: {next(iter(unread.values()))}"))

    def _ask(self) -> JobInfo:
        try:
            return self._job_info()
        except SchedulerSilentError as error:  # the scheduler has not answered yet, but may later
            why = str(error).split("; ")[0]
        except Exception as error:  # no process or thread to ask with, or no file system with its program
            why = _reason(error).split("; ")[0]
        return JobInfo(id=self._run_dir.job, state=JobState.UNKNOWN, reason=why, answered=False)

    def _refuse_lost(self, view: View) -> None:
        now = time.monotonic()
        if view.job is not JobState.UNKNOWN or not view.info.answered or view.ready:
            self._known = now
        elif now - self._known > self._patience:
            raise LaunchError(view.sentence)

    def _apply(self, view: View) -> None:
        """Apply the changes; report a new failure once, and retry at the next tick."""
        steps = (
            ("lease", self._hold),
            ("balancer", self._balance),
            ("endpoint.json", self._publish),
            ("latest", self._point),
            ("prometheus", self._scrape),
        )
        for part, step in steps:
            try:
                step(view)
                self._well(part)
            except LeaseLost:
                raise
            except (ExatrkxError, *_OF_THE_MACHINE) as error:
                self._trouble(part, NotApplied, error)

    def _trouble(self, part: str, kind: type[NotApplied] | type[NotObserved], error: Exception) -> None:
        """Report what failed, once as long as it fails for the same reason."""
        said = _reason(error)
        if isinstance(error, OSError) and kind is NotApplied:
            said = f"{said} below {self._run_dir}"
        if self._troubles.get(part) != said:
            job = self._run_dir.job
            self.tell(
                NotApplied(job=job, part=part, reason=said)
                if kind is NotApplied
                else NotObserved(job=job, what=part, reason=said)
            )
        self._troubles[part] = said

    def _well(self, part: str) -> None:
        self._troubles.pop(part, None)

    def _hold(self, view: View) -> None:
        """Renew the lease at intervals, before a change of what another monitor may have taken over."""
        if time.monotonic() - self._held >= _BEAT:
            self._renew()
            self._held = time.monotonic()

    def _balance(self, view: View) -> None:
        wanted = tuple(member.grpc for member in view.ready)
        if not self._balancer.alive():
            if not self._down:
                name = self._balancer.name
                self.tell(BalancerEnded(job=self._run_dir.job, balancer=name, endpoint=self.endpoint))
            self._down = True
            self._balancer.start(view.ready)
            self._applied = wanted
        self._down = False
        if wanted != self._applied:
            self._balancer.update(view.ready)
            self._applied = wanted
            self._updated = time.time()
            self.tell(BalancerReloaded(job=self._run_dir.job, servers=_names(view.ready)))
        for complaint in self._balancer.warnings():
            self.tell(BalancerWarned(job=self._run_dir.job, reason=complaint))

    def _publish(self, view: View) -> None:
        """Write endpoint.json after each change and, as a heartbeat, at intervals."""
        if self._applied is None:
            return  # the balancer has not taken its first members
        facts = (self._applied, self._balancer.identity, self._balancer.pid)
        due = time.monotonic() - self._beaten >= _BEAT
        if facts == self._published and not due:
            return
        self._write_endpoint(view)
        self._published = facts
        self._beaten = time.monotonic()

    def _point(self, view: View) -> None:
        if self._published is not None and not self._pointed:
            point_latest(self._run_dir)
            self._pointed = True

    def _scrape(self, view: View) -> None:
        """Start Prometheus with the first ready server, then update its targets."""
        if self._store is not None:
            # A server that does not answer stays a target, so that Prometheus shows the server as down.
            targets = tuple(m for m in view.members if m.state != "starting" and m.record.state != "gone")
            self._store.follow(targets, start=bool(view.ready))

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
                access=self._balancer.listen.access.kind,
                certificate=self._balancer.listen.access.pinned,
                ready=len(view.ready),
                identity=str(self._balancer.identity),
                host=host_name(),
                boot=boot_id(),
                balancer_pid=self._balancer.pid or 0,
                monitor_pid=os.getpid(),
                monitor_started=monitor.started if (monitor := process_id(os.getpid())) is not None else 0,
                interval=max(_BEAT, self._settings.interval),
                heartbeat=time.time(),
                updated=self._updated,
            ),
        )


def _names(members: tuple[Member, ...]) -> tuple[str, ...]:
    return tuple(member.name for member in members)


def _reason(error: Exception) -> str:
    """Return what went wrong, as one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ExatrkxError | RuntimeError):
        return str(error)
    return f"{type(error).__name__}: {error}"
