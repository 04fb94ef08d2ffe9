"""Slurm jobs with run directories: farms that run from a terminal, and checks that nodes see the run root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.launch.events import JobAdopted, SubmissionOpen
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir
from exatrkx_hpc.launch.scheduler import JobMayRunError, SchedulerSilentError
from exatrkx_hpc.launch.slurm.environment import chosen_cluster, chosen_clusters
from exatrkx_hpc.launch.slurm.interactive import Allocation, Foreground, allocation, begin
from exatrkx_hpc.launch.slurm.job import JobId, Owner
from exatrkx_hpc.launch.slurm.scheduler import WHEN_IT_IS_BACK, Slurm
from exatrkx_hpc.launch.slurm.snapshot import unknown
from exatrkx_hpc.launch.slurm.submissions import Submission, Submissions, sought
from exatrkx_hpc.launch.slurm.submit import submit
from exatrkx_hpc.launch.words import sh

#: Content of the marker of a farm that a terminal runs: where the allocation comes from.
_OURS, _THEIRS = "allocated by salloc\n", "allocation of a shell\n"
#: Ends after which Slurm requeues a job that allows it, and the seconds that this may take.
_MAY_RESTART, _REQUEUED = {JobState.PREEMPTED, JobState.NODE_FAIL}, 60.0
#: In seconds. The clocks of this machine and of the file server may differ by this much.
_SAME_TIME = 60.0
#: Time, in seconds, that salloc needs to release its nodes.
_RELEASE = 30.0


class SlurmRecord(BaseModel):
    """The record of a submitted job in its run directory: its name, its script and its cluster.

    `cluster` is '' for the cluster of this machine, and None if it is not recorded, as for a script submitted by hand.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cluster: str | None = None
    name: str = ""
    script: str = ""


def read_record(run_dir: RunDir) -> SlurmRecord:
    """Return the record in a run directory; an empty record for a script that was submitted by hand."""
    try:
        return SlurmRecord.model_validate_json(run_dir.slurm_job.read_bytes())
    except (OSError, ValidationError):
        return SlurmRecord()


class FarmSlurm:
    """Slurm as the scheduler of the jobs below one run root; each query and command goes to the job's own cluster."""

    abilities = Slurm.abilities

    def __init__(
        self,
        cluster: Callable[[str | None], Slurm],
        *,
        run_root: Path,
        grace: float,
        interactive: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Use `cluster` to get the Slurm of a cluster name; None means the cluster that the shell chooses.

        With `interactive`, a script runs from this terminal and not as a batch job. A farm of a terminal that drains is
        killed after `grace` seconds.
        """
        self._make = cluster
        self._clusters: dict[str | None, Slurm] = {}
        self._others: dict[tuple[str, str], str] = {}
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._farm = FarmDir(run_root)
        self._submissions = Submissions(self._farm.submissions)
        self._grace = grace
        self._here = interactive
        self._clock = clock
        self._sleep = sleep
        self._running: dict[str, Foreground] = {}

    def _slurm(self, cluster: str | None) -> Slurm:
        if cluster not in self._clusters:
            self._clusters[cluster] = self._make(cluster)
        return self._clusters[cluster]

    def _of(self, job: str) -> Slurm:
        return self._slurm(read_record(self._farm.job(job)).cluster)

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit or start `script` and return the job's ID; raises LaunchError if it is refused.

        Raises JobMayRunError if it is unknown whether the job exists.
        """
        if self._here:
            return self._start(script, plan)
        begun = self._submissions.begun(
            script,
            name=plan.name,
            clusters=chosen_clusters(os.environ, plan.extra_directives),
            plan=plan.model_dump_json(indent=2),
        )
        with begun as submission:
            directives = dict(plan.directives)
            log, comment = directives["output"], directives.get("comment", "")
            job = submit(submission, log=log, comment=comment, options=plan.extra_directives)
            self._slurm(job.cluster).heard()
            try:
                self._adopt(job, submission)
            except BaseException as error:
                self._give_up(job, submission, error)
                raise
        return job.number

    def _give_up(self, job: JobId, submission: Submission, error: BaseException) -> None:
        """Cancel a job that cannot be recorded; raises LaunchError for a run directory that cannot be written."""
        where = self._farm.job(job.number)
        why = f"{where} cannot be written ({error.strerror}); " if isinstance(error, OSError) else ""
        try:
            self._slurm(job.cluster).cancel(job.number, owner=self._owner(job.number), drain=False)
        except (LaunchError, MissingComponent) as other:
            raise JobMayRunError(f"{why}job {job.number} may run ({other})") from error
        self._submissions.end(submission)
        if why:
            raise LaunchError(f"{why}job cancelled") from error

    def _start(self, script: Path, plan: FarmPlan) -> str:
        inside = allocation(os.environ)
        if inside is not None:
            self._make_way(inside, plan.nodes)
            return self._start_in(inside, script, plan)
        begun = self._submissions.begun(
            script,
            name=plan.name,
            clusters=chosen_clusters(os.environ, plan.extra_directives),
            plan=plan.model_dump_json(indent=2),
            interactive=True,
        )
        with begun as submission:
            started = begin(script, plan, comment=submission.commented(dict(plan.directives).get("comment", "")))
            try:
                job = started.name()
                cluster = chosen_cluster(os.environ, plan.extra_directives)
                self._adopt(JobId(number=job, cluster=cluster), submission)
            except BaseException:
                started.kill()
                raise
        self._running[job] = started
        return job

    def _start_in(self, inside: Allocation, script: Path, plan: FarmPlan) -> str:
        started = begin(script, plan, comment=None)
        try:
            # The allocation of a shell has its own name.
            job = JobId(number=inside.job, cluster=inside.cluster)
            self._note(job, script, "", plan.model_dump_json(indent=2))
            write_whole(self._farm.job(inside.job).interactive, _THEIRS)
        except BaseException:
            started.kill()
            raise
        self._running[inside.job] = started
        return inside.job

    def _adopt(self, job: JobId, submission: Submission) -> None:
        """Record the job in its run directory, then forget its submission; raises OSError if that fails."""
        run_dir = self._farm.job(job.number)
        _forget_former(run_dir, before=submission.began)
        self._note(job, Path(submission.script), submission.name, submission.plan)
        if submission.interactive:
            write_whole(run_dir.interactive, _OURS)
        self._submissions.end(submission)

    def settle(self, tell: Tell = untold) -> bool:
        """Take over the jobs of submissions that did not finish, each with news; return whether none is left open.

        Also forgets submissions that made no job. Slurm may be away or a disk full: then a submission stays open, and
        news say why.
        """
        left = False
        for submission in self._submissions.all():
            if submission.in_progress():
                continue
            if why := self._settled(submission, tell):
                left = True
                tell(SubmissionOpen(submitted=submission.began, reason=why))
        return not left

    def _settled(self, submission: Submission, tell: Tell) -> str:
        """Take over the jobs of a submission, or forget it; return why it stays open, then the next step, or ''."""
        late = submission.may_come()
        found = sought(submission)
        try:
            for job in found.jobs:
                self._adopt(job, submission)
                tell(JobAdopted(job=job.number, submitted=submission.began))
        except OSError as error:
            jobs = ", ".join(map(str, found.jobs))
            return f"job {jobs} exists, but cannot be recorded ({error.strerror}); check permissions and free space"
        if found.silent and not found.jobs:
            return f"Slurm does not say whether its job exists ({found.silent}); {WHEN_IT_IS_BACK}"
        if late and not found.jobs:
            return (
                "Slurm knows no job of it, but may still accept one; retry in some minutes, or remove "
                f"{self._submissions.file(submission)} to submit anyway"
            )
        self._submissions.end(submission)
        return ""

    def _note(self, job: JobId, script: Path, name: str, plan: str) -> None:
        """Record the job and its plan in its run directory: its number alone may be that of another job some day."""
        run_dir = self._farm.job(job.number)
        run_dir.path.mkdir(mode=0o700, exist_ok=True)
        record = SlurmRecord(cluster=job.cluster, name=name, script=str(script))
        write_whole(run_dir.slurm_job, record.model_dump_json() + "\n", mode=0o600)
        write_whole(run_dir.plan, plan + "\n", mode=0o600)

    def _owner(self, job: str) -> Owner:
        root, run_dir = str(self._farm), self._farm.job(job)
        return Owner(
            log=root.replace("%", "%%") + "/job-%j.log",
            line=f"run_dir={sh(root)}/$SLURM_JOB_ID",
            name=read_record(run_dir).name if run_dir.interactive.exists() else "",
        )

    def _make_way(self, inside: Allocation, nodes: int) -> None:
        """Refuse an allocation that is too small or runs a farm; remove status and records of its earlier farm."""
        job, run_dir = inside.job, self._farm.job(inside.job)
        if 0 < inside.nodes < nodes:
            has = f"{inside.nodes} node{'s' if inside.nodes > 1 else ''}"
            raise LaunchError(
                f"this shell's allocation {job} has {has}, but the farm needs {nodes}; request fewer nodes with -N"
            )
        if (state := self._slurm(inside.cluster).info(job).state) is not JobState.RUNNING:
            raise LaunchError(
                f"this shell's allocation {job} is {state.value}; exit the shell and request a new allocation"
            )
        if run_dir.path.is_dir() and not self.info(job).state.over:
            raise LaunchError(f"job {job} already runs a farm; stop it with 'exatrkx-hpc stop {job}'")
        for old in (run_dir.exit_status, *run_dir.records.glob("*.json")):
            old.unlink(missing_ok=True)

    def info(self, job: str) -> JobInfo:
        """Return the job's current state; UNKNOWN with a reason if Slurm does not report it."""
        return self.infos([job])[job]

    def infos(self, jobs: Sequence[str]) -> dict[str, JobInfo]:
        """Return the current states of `jobs` from one query of each cluster; see `info`.

        Jobs of a silent cluster are UNKNOWN; raises SchedulerSilentError if no cluster answers.
        """
        records = {job: read_record(self._farm.job(job)) for job in jobs}
        found: dict[str, JobInfo] = {}
        silent: list[SchedulerSilentError] = []
        clusters = dict.fromkeys(record.cluster for record in records.values())
        for cluster in clusters:
            there = [job for job in jobs if records[job].cluster == cluster]
            try:
                found |= self._on(cluster, there)
            except SchedulerSilentError as error:
                silent.append(error)
                found |= {job: unknown(job, str(error), answered=False) for job in there}
        if silent and len(silent) == len(clusters):
            raise silent[0]
        return {job: self._explained(found[job], records[job]) for job in jobs}

    def _on(self, cluster: str | None, jobs: Sequence[str]) -> dict[str, JobInfo]:
        slurm = self._slurm(cluster)
        infos = slurm.infos(jobs)
        begun = [job for job in jobs if infos[job].state is JobState.PENDING and self._has_begun(job)]
        if begun:
            slurm.look_again()
            infos = slurm.infos(jobs)
        return infos

    def _has_begun(self, job: str) -> bool:
        """Return whether the script of the job has begun to run since the last call: Slurm's answer is too old."""
        try:
            now = self._farm.job(job).server_script.stat().st_mtime
        except OSError:
            now = 0.0
        before = self._began.setdefault(job, now)
        self._began[job] = now
        return now != before

    def _explained(self, info: JobInfo, record: SlurmRecord) -> JobInfo:
        run_dir = self._farm.job(info.id)
        found = replace(info, cluster=record.cluster or "")
        if why := self._another(found, record):
            return JobInfo(id=info.id, state=JobState.UNKNOWN, reason=why, cluster=found.cluster)
        if found.state is JobState.RUNNING and run_dir.interactive.exists():
            return self._of_terminal(found, run_dir)
        if found.state in _MAY_RESTART and _requeues(run_dir) and self._lately(found):
            # Slurm reports the end of a run before it queues the job again.
            return replace(found, state=JobState.COMPLETING, reason=f"{found.state.value}, Slurm may requeue it")
        seen = run_dir.server_script.exists() or run_dir.job_log.exists()
        if found.state is JobState.FAILED and found.nodes and run_dir.path.is_dir() and not seen:
            why = f"{found.nodes[0]} wrote nothing to {self._farm}; set run_root to a folder that all nodes share"
            return replace(found, reason=why)
        return found

    def _lately(self, info: JobInfo) -> bool:
        """Return whether the job ended less than a minute ago; without the time of its end, since it was first seen."""
        if info.end is not None:
            return time.time() < info.end + _REQUEUED
        return self._clock() < self._ended.setdefault(info.id, self._clock()) + _REQUEUED

    def _another(self, found: JobInfo, record: SlurmRecord) -> str:
        """Return why Slurm's job with this number is not the submitted job; '' if it is."""
        if not record.name or not found.name or found.name == record.name or found.id in self._running:
            return ""
        key = (found.id, found.name)
        if key not in self._others:
            try:
                self._others[key] = self._of(found.id).why_foreign(found.id, self._owner(found.id))
            except LaunchError:
                return f"Slurm's job {found.id} is called {found.name!r}, and this one was {record.name!r}"
        return self._others[key] and f"the job ID now belongs to another job: {self._others[key]}"

    def _of_terminal(self, found: JobInfo, run_dir: RunDir) -> JobInfo:
        """Return the state of the farm in an allocation; the allocation may outlive the farm."""
        status = _exit_status(run_dir)
        started = self._running.get(found.id)
        if status is None and (started is None or started.runs()):
            return found
        state = JobState.COMPLETED if status == 0 else JobState.FAILED
        return replace(found, state=state, time_left=None, reason="its farm has ended, its allocation is kept")

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end; the allocation of a shell stays.

        Raises LaunchError if Slurm refuses, or the servers do not end.
        """
        run_dir, started = self._farm.job(job), self._running.get(job)
        if not (started or run_dir.interactive.exists()):
            alone = partial(self._without_script, run_dir, "drain" if drain else "halt")
            self._of(job).cancel(job, owner=self._owner(job), drain=drain, enough=alone)
            return
        now = self.info(job)
        if now.state is JobState.PENDING:
            self._of(job).cancel(job, owner=self._owner(job), drain=drain)
        elif not self._told_and_ended(job, "drain" if drain else "halt"):
            self._force(job)
        if started is not None:
            started.settle(_RELEASE)

    def _without_script(self, run_dir: RunDir, word: str, info: JobInfo) -> bool:
        """Return whether the servers of a job have ended that has lost its script with its first node.

        Such a job runs on until its time limit. The servers of its other nodes get the stop request from here.
        """
        servers = _places(run_dir)
        first = min({*info.nodes, *(node for node, _ in servers)}, key=_in_order, default="")
        if info.state is not JobState.RUNNING or not info.nodes or first in info.nodes:
            return False
        with contextlib.suppress(OSError):
            if not run_dir.stop.exists():
                write_whole(run_dir.stop, f"{word}\nrequest\n")
        return all(state == "gone" for node, state in servers if node in info.nodes)

    def _told_and_ended(self, job: str, word: str) -> bool:
        """Write the stop request and wait for the end; write it again if a script that starts removes the file."""
        stop = self._farm.job(job).stop
        until = self._clock() + self._grace
        while not self.info(job).state.over:
            if self._clock() >= until:
                return False
            with contextlib.suppress(OSError):
                if not stop.exists() or stop.read_text().split()[:1] != [word]:
                    write_whole(stop, f"{word}\nrequest\n")
            self._sleep(0.2)
        return True

    def _force(self, job: str) -> None:
        if (started := self._running.get(job)) is not None:
            started.kill()
        if self._ours(job):
            self._of(job).cancel(job, owner=self._owner(job), drain=False)
        elif started is None:
            raise LaunchError(
                f"the servers of job {job} have not ended after {self._grace:g} s; "
                f"'scancel {job}' ends them together with their allocation"
            )

    def _ours(self, job: str) -> bool:
        with contextlib.suppress(OSError):
            return self._farm.job(job).interactive.read_text() == _OURS
        return job in self._running and allocation(os.environ) is None


def _in_order(node: str) -> list[tuple[int, str]]:
    """Return the key by which Slurm sorts nodes: numbers in names count as numbers."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", node)]


def _places(run_dir: RunDir) -> list[tuple[str, str]]:
    """Return the node and the state of each server, from its record."""
    found = []
    for path in run_dir.records.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_bytes())
            found.append((str(record["node"]), str(record["state"])))
    return found


def _requeues(run_dir: RunDir) -> bool:
    """Return whether the job was submitted with `requeue`, by the plan in its run directory."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return any(name == "requeue" for name, _ in json.loads(run_dir.plan.read_bytes())["directives"])
    return False


def _forget_former(run_dir: RunDir, *, before: float) -> None:
    """Remove the state of a former job with the same number; numbers start again when a cluster is set up anew.

    The new job may already run, so only files that had not changed for a minute before the submission are removed.
    """
    state = (run_dir.stop, run_dir.exit_status, run_dir.interactive, run_dir.endpoint, *run_dir.records.glob("*"))
    for old in state:
        with contextlib.suppress(FileNotFoundError):
            if old.lstat().st_mtime < before - _SAME_TIME:
                old.unlink()


def _exit_status(run_dir: RunDir) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(run_dir.exit_status.read_text())
    return None
