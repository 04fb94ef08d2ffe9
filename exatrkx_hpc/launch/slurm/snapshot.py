"""A cached snapshot of the user's jobs: one query for all jobs, at intervals; the last answer bridges a slow Slurm."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.slurm.library import library_queue, library_release, release
from exatrkx_hpc.launch.slurm.parse import (
    ACCOUNT_FIELDS,
    FOREIGN,
    QUEUE_FIELDS,
    Queue,
    Unreadable,
    parse_accounting,
    parse_queue_json,
    parse_queue_lines,
)
from exatrkx_hpc.launch.slurm.refusals import own_words

#: The maximum number of jobs in one query of the accounting; a command line has a maximum length.
_MOST_JOBS = 500
#: How long accounting may take, in seconds, to report a failed job; observed: 5 s.
_LAG = 20.0
#: Runs one of Slurm's commands; raises MissingComponent if the command is missing.
Ask = Callable[[list[str]], Completed]


def squeue_json_argv() -> list[str]:
    """Return the command that lists all jobs of this user, including those that ended in the last minutes."""
    return ["squeue", "--me", "--states=all", "--json"]


def squeue_lines_argv() -> list[str]:
    """Return the command that lists the same jobs, one per line; a query for a single job fails after its end."""
    return ["squeue", "--me", "--states=all", "--noheader", f"--format={QUEUE_FIELDS}"]


def sacct_argv(jobs: Collection[str]) -> list[str]:
    """Return the command that shows the outcome of jobs and of their steps, from the accounting."""
    return ["sacct", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", f"--format={ACCOUNT_FIELDS}"]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Slurm's answer at one time of the clock; with `trouble`, Slurm reported no job."""

    taken: float
    jobs: Mapping[str, JobInfo] = field(default_factory=dict)
    trouble: str = ""


class Slurmctld:
    """Queries Slurm's queue in the fastest way that this version supports, and the accounting."""

    def __init__(self, ask: Ask, *, uid: int, now: Callable[[], float], lines_only: bool) -> None:
        """Query the jobs of the user `uid` through `ask`; `now` returns seconds since 1970.

        With `lines_only`, neither JSON nor pyslurm is tried.
        """
        self._ask = ask
        self._uid = uid
        self._now = now
        self._json = not lines_only
        self._library: bool | None = False if lines_only else None

    def queue(self) -> Queue:
        """Return the user's jobs in the queue; raises Unreadable with Slurm's message if Slurm does not answer."""
        if self._library_fits() and (queue := library_queue(uid=self._uid, now=self._now())) is not None:
            return queue
        self._library = False
        if self._json and (queue := self._queue_by_json()) is not None:
            # 22.05 ignores --me here, and the queue of a whole site is too big for each query.
            self._json = not queue.whole
            return queue
        done = self._ask(squeue_lines_argv())
        if done.returncode:
            raise Unreadable(own_words(done.stderr or done.stdout))
        self._json = False
        return parse_queue_lines(done.stdout)

    def accounts(self, jobs: Collection[str]) -> dict[str, JobInfo]:
        """Return the accounting's data of `jobs`; if sacct fails, they are UNKNOWN with its message."""
        names = list(jobs)
        parts = [names[first : first + _MOST_JOBS] for first in range(0, len(names), _MOST_JOBS)]
        return {job: info for part in parts for job, info in self._accounts(part).items()}

    def _accounts(self, jobs: Collection[str]) -> dict[str, JobInfo]:
        done = self._ask(sacct_argv(jobs))
        if done.returncode == 0:
            return parse_accounting(done.stdout, uid=self._uid, now=self._now())
        why = f"it has left the queue, and sacct says: {own_words(done.stderr or done.stdout)}"
        return {job: unknown(job, why) for job in jobs}

    def _queue_by_json(self) -> Queue | None:
        done = self._ask(squeue_json_argv())
        try:
            return parse_queue_json(done.stdout, uid=self._uid, now=self._now()) if done.returncode == 0 else None
        except Unreadable:
            return None

    def _library_fits(self) -> bool:
        if self._library is None:
            mine = library_release()
            self._library = bool(mine) and mine == release(self._ask(["squeue", "--version"]).stdout)
        return self._library


def unknown(job: str, reason: str, *, answered: bool = True) -> JobInfo:
    """Return `job` with the state UNKNOWN and a reason; `answered` is false if Slurm did not answer at all."""
    return JobInfo(id=job, state=JobState.UNKNOWN, reason=reason, answered=answered)


def settle(job: str, queued: JobInfo | None, accounted: JobInfo | None) -> JobInfo:
    """Combine the answers of the queue and the accounting; the queue takes precedence.

    For a requeued job, accounting reports the end of its last run. For a job that has just ended, it may still report
    RUNNING. So accounting counts only for a job that has left the queue, and only if it reports an end. Exception: a
    FAILED job in the queue is OUT_OF_MEMORY if accounting says so.
    """
    if queued is not None:
        starved = queued.state is JobState.FAILED and accounted and accounted.state is JobState.OUT_OF_MEMORY
        return replace(queued, state=accounted.state, reason=accounted.reason) if accounted and starved else queued
    if accounted is None:
        return unknown(job, "neither squeue nor sacct knows it")
    if accounted.state.over or accounted.state is JobState.UNKNOWN:
        return accounted
    if accounted.state is JobState.COMPLETING:
        return replace(accounted, state=JobState.FAILED)
    return unknown(job, f"it has left the queue, but accounting still reports {accounted.state.value}")


class SlurmJobs:
    """Answers `info` for any number of jobs from one snapshot, which a thread refreshes."""

    def __init__(
        self,
        ask: Ask,
        *,
        lines_only: bool = False,
        max_age: float = 5.0,
        pending_age: float = 30.0,
        patience: float = 1.0,
        trust: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Query through `ask`, at most once in `max_age` seconds of `clock`, or `pending_age` if all jobs are pending.

        If an answer takes longer than `patience` seconds, the last answer is used for `trust` seconds, of which the
        first `max_age` (or `pending_age`) need no new one.
        `now` returns seconds since 1970. With `lines_only`, neither JSON nor pyslurm is tried.
        """
        self._slurm = Slurmctld(ask, uid=os.getuid(), now=now, lines_only=lines_only)
        self._max_age = max_age
        self._pending_age = max(pending_age, max_age)
        self._patience = patience
        self._trust = max(trust, max_age)
        self._clock = clock
        self._wanted: set[str] = set()
        self._ended: dict[str, JobInfo] = {}
        self._failed: dict[str, float] = {}
        self._snapshot: Snapshot | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def info(self, job: str) -> JobInfo:
        """Return the state of `job`; UNKNOWN with a reason if Slurm does not report it.

        Raises MissingComponent if Slurm's commands are missing.
        """
        return self.infos([job])[job]

    def infos(self, jobs: Collection[str]) -> dict[str, JobInfo]:
        """Return the states of `jobs` from one query, however many there are; see `info`."""
        with self._lock:
            snapshot = self._look(jobs)
            trust = self._trust + self._enough(snapshot) - self._max_age
        age = self._clock() - snapshot.taken
        if age > trust:
            return {job: unknown(job, f"Slurm has not answered for {age:.0f} s", answered=False) for job in jobs}
        if snapshot.trouble:
            return {job: unknown(job, snapshot.trouble, answered=False) for job in jobs}
        return {job: snapshot.jobs.get(job) or unknown(job, "Slurm was not queried for it yet") for job in jobs}

    def forget(self) -> None:
        """Discard the snapshot, so that the next `info` queries again: a job has just changed."""
        with self._lock:
            self._wait(None)
            self._snapshot = None

    def _look(self, jobs: Collection[str]) -> Snapshot:
        if fresh := set(jobs) - self._wanted:
            self._wait(None)  # a query that started before this request does not include these jobs
            self._wanted |= fresh
            known = self._snapshot.jobs if self._snapshot is not None else {}
            # Accounting was not queried for a job that is not in the queue, or FAILED there.
            if any(job not in known or known[job].state is JobState.FAILED for job in fresh):
                self._snapshot = None
        if self._snapshot is None or self._clock() - self._snapshot.taken > self._enough(self._snapshot):
            if self._thread is None:
                thread = threading.Thread(target=self._renew, name="slurm", daemon=True)
                thread.start()  # RuntimeError if there is no thread now; the next call tries again
                self._thread = thread
            self._wait(None if self._snapshot is None else self._patience)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        assert self._snapshot is not None
        return self._snapshot

    def _enough(self, snapshot: Snapshot) -> float:
        """Return the age, in seconds, up to which a snapshot needs no new one; a pending job rarely changes."""
        states = {snapshot.jobs[job].state for job in self._wanted if job in snapshot.jobs}
        return self._pending_age if states == {JobState.PENDING} else self._max_age

    def _wait(self, seconds: float | None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._thread = None

    def _renew(self) -> None:
        try:
            self._snapshot = self._question()
        except Exception as error:  # raised in the caller
            self._error = error

    def _question(self) -> Snapshot:
        try:
            jobs = self._slurm.queue().jobs
        except Unreadable as trouble:
            return Snapshot(taken=self._clock(), trouble=str(trouble))
        wanted = sorted(self._wanted)
        doubtful = [
            job
            for job in wanted
            if (job not in jobs and job not in self._ended) or (job in jobs and jobs[job].state is JobState.FAILED)
        ]
        accounts = {**self._ended, **(self._slurm.accounts(doubtful) if doubtful else {})}
        self._ended = {job: info for job, info in accounts.items() if info.state.over and job not in jobs}
        settled = {job: settle(job, jobs.get(job), accounts.get(job)) for job in wanted}
        settled |= {job: self._patiently(settled[job], accounts.get(job)) for job in wanted if job in jobs}
        return Snapshot(taken=self._clock(), jobs={**jobs, **settled})

    def _patiently(self, info: JobInfo, accounted: JobInfo | None) -> JobInfo:
        """Hold FAILED back for up to 20 s, until the accounting reports whether the job ran out of memory."""
        # In the first seconds, accounting reports uid 0 as the owner of the job.
        told = (
            accounted is not None
            and not accounted.reason.startswith(FOREIGN)
            and (accounted.state.over or accounted.state is JobState.UNKNOWN)
        )
        if info.state is not JobState.FAILED or told:
            return info
        if self._clock() - self._failed.setdefault(info.id, self._clock()) > _LAG:
            return info
        return replace(info, state=JobState.COMPLETING, reason="it failed; accounting does not report the reason yet")
