"""Explain in one line how a job ended or why it waits, with the next step.

The scheduler's answer is not enough: Slurm reports COMPLETED for a job that drained before its time limit, and FAILED
for every cause that made its servers give up. The file `stop` in the run directory holds the request that the job's
script received; a server's record holds how that server ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.readable import names
from exatrkx_hpc.config.values import EARLY_SIGNAL
from exatrkx_hpc.fleet.members.record import ServerRecord
from exatrkx_hpc.fleet.reasons import with_remedy
from exatrkx_hpc.launch.run_dir import RunDir

_AGAIN = "resubmit it with 'exatrkx-hpc deploy'"
_WHAT = {
    JobState.CANCELLED: "it was cancelled",
    JobState.FAILED: "its script failed",
    JobState.TIMEOUT: "it reached its time limit",
    JobState.OUT_OF_MEMORY: "it ran out of memory",
    JobState.NODE_FAIL: "a node of it failed",
    JobState.PREEMPTED: "a job with higher priority preempted it",
}
_NEXT = {
    JobState.CANCELLED: _AGAIN,
    JobState.FAILED: "see 'exatrkx-hpc logs {id}'",
    JobState.TIMEOUT: f"{_AGAIN}; job.time sets the limit",
    JobState.OUT_OF_MEMORY: "increase job.memory, or decrease server.instances",
    JobState.NODE_FAIL: f"{_AGAIN}, or let Slurm do so with job.requeue = true",
    JobState.PREEMPTED: f"{_AGAIN}, or let Slurm do so with job.requeue = true",
    JobState.PENDING: "'squeue --me --start' shows the expected start",
}
#: Next step for UNKNOWN, by whether the scheduler answered.
_UNKNOWN = {
    True: "'squeue --me --states=all' lists your jobs",
    False: "'scontrol ping' shows whether Slurm is back",
}
#: Explanations of Slurm's reasons why a job waits; other reasons are shown as they are.
_WAITS = {
    "Resources": "no nodes are free",
    "Priority": "other jobs have higher priority",
    "Dependency": "another job must end first",
    "BeginTime": "its begin time is in the future",
    "JobHeldUser": "it is held; release it with 'scontrol release {id}'",
    "JobHeldAdmin": "it is held by the site",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
}
#: Reasons whose explanation includes the next step.
_SAYS_WHAT_TO_DO = {"JobHeldUser"}


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """A request to stop a job; `what` is `drain` or `halt`.

    `by` is `SIGTERM` (from Slurm), `request` (from a user) or `beside` (the command beside the servers has ended).
    """

    what: str
    by: str


def read_stop_request(run_dir: RunDir) -> StopRequest | None:
    """Return the stop request that the script of the job received, or None."""
    try:
        words = run_dir.stop.read_text(errors="replace").split()
    except OSError:
        return None
    return StopRequest(what=words[0], by=words[1] if len(words) > 1 else "request") if words else None


def read_notice(run_dir: RunDir) -> float:
    """Return how many seconds before its time limit the job requests a signal, from its plan; 60 if not set."""
    try:
        directives = dict(json.loads(run_dir.plan.read_text())["directives"])
    except (OSError, ValueError, KeyError, TypeError):
        return 60.0
    match = re.search(r"@(\d+)", str(directives.get("signal", "")))
    return float(match[1]) if match else 60.0


def of_former_run(record: ServerRecord, info: JobInfo) -> bool:
    """Return whether the job was requeued and is pending, and the record is from before the requeue.

    A record in the run directory of a job that never ran is that of an earlier job with the same number.
    """
    waits = info.state is JobState.PENDING and info.restarts != 0
    return waits and info.submit is not None and record.updated <= info.submit


def of_lost_node(record: ServerRecord, info: JobInfo) -> bool:
    """Return whether the job runs on without the record's node."""
    return info.state is JobState.RUNNING and bool(info.nodes) and record.node not in info.nodes


def explained(info: JobInfo, run_dir: RunDir, records: Iterable[ServerRecord]) -> JobInfo:
    """Return `info` with a one-line reason: what happened and, if there is one, the next step."""
    if info.state is JobState.UNKNOWN:
        return replace(info, reason=f"{info.reason}; {_UNKNOWN[info.answered]}")
    if info.state is JobState.COMPLETED:
        return replace(info, reason=_completed(info, read_stop_request(run_dir), read_notice(run_dir)))
    if info.state is JobState.PENDING:
        again = any(of_former_run(record, info) for record in records)
        what = f"{'requeued, ' if again else ''}{_waits(info)}"
    elif info.state.over:
        what = _ended(info, records)
    else:
        return replace(info, reason=why) if (why := _fewer(info, tuple(records))) else info
    if info.state is JobState.PENDING and _word(info) in _SAYS_WHAT_TO_DO:
        return replace(info, reason=what)
    return replace(info, reason=f"{what}; {_NEXT[info.state].format(id=info.id)}")


def _fewer(info: JobInfo, records: tuple[ServerRecord, ...]) -> str:
    """Return why a running job has fewer servers than at its start, or ''."""
    lost = {record.node for record in records if of_lost_node(record, info)}
    given_up = [record for record in records if "gave up" in record.note]
    what = [f"lost {names(lost)}"] if lost else []
    if given_up:
        many = f"{len(given_up)} of {len(records)} servers gave up"
        what.append(f"{many}, {given_up[0].server}: {with_remedy(given_up[0].note)}")
    return "; ".join((*what, "the other servers keep running")) if what else ""


def _completed(info: JobInfo, request: StopRequest | None, notice: float) -> str:
    if request is None:
        return info.reason
    if request.by == "beside":
        return "drained after the command beside its servers had ended"
    if request.by != "SIGTERM":
        return f"{'drained' if request.what == 'drain' else 'ended at once'}, as 'exatrkx-hpc stop' asked"
    if info.unused is None:
        return "drained on SIGTERM"
    if info.unused <= notice + EARLY_SIGNAL:
        return f"time limit: drained on Slurm's signal, {info.unused:.0f} s were left; {_NEXT[JobState.TIMEOUT]}"
    return f"drained on SIGTERM, {info.unused:.0f} s before its time limit; {_AGAIN}"


def _word(info: JobInfo) -> str:
    """Return the first of Slurm's reasons why a job waits, without parentheses."""
    return info.reason.split(",")[0].strip("()")


def _waits(info: JobInfo) -> str:
    plain = _WAITS.get(_word(info))
    if plain is None:
        return info.reason or "it waits in the queue"
    return f"{info.reason}: {plain.format(id=info.id)}"


def _ended(info: JobInfo, records: Iterable[ServerRecord]) -> str:
    given_up = [f"{record.server} {with_remedy(record.note)}" for record in records if "gave up" in record.note]
    if info.state is JobState.FAILED and given_up:
        more = f" (and {len(given_up) - 1} more)" if len(given_up) > 1 else ""
        return f"{given_up[0]}{more}"
    return f"{_WHAT[info.state]}{f' ({info.reason})' if info.reason else ''}"
