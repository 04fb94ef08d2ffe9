"""Parse the output of Slurm's commands: pure functions from text to values.

The formats are those of Slurm 22.05 to 24.11. The data parser of 23.02 changed `squeue --json`: a number became
`{"set": true, "infinite": false, "number": 5}` and the state a list of words.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from exatrkx_hpc.base.job import JobInfo, JobState

#: Slurm's state flags and their meaning for a farm. A flag takes precedence over the base state; of several flags, the
#: first in this order counts. A word that is in no table is UNKNOWN.
_FLAGS = {
    "COMPLETING": JobState.COMPLETING,
    "STAGE_OUT": JobState.COMPLETING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "REVOKED": JobState.CANCELLED,
    "STOPPED": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
}
_OTHER_WORDS = {
    **_FLAGS,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "DEADLINE": JobState.TIMEOUT,
    "SUSPENDED": JobState.RUNNING,
}
#: If one of several words says that the job lives, it lives, whatever the others say of its last run.
_LIVING = ("RUNNING", "PENDING", "SUSPENDED")
#: One job per line; the name is last because it may contain a bar.
QUEUE_FIELDS = "%A|%T|%N|%L|%r|%V|%S|%j"
ACCOUNT_FIELDS = "JobIDRaw,UID,State,NodeList,Submit,Start,ExitCode,Reason,Timelimit,Elapsed,JobName"
#: Slurm 22.05 uses numbers from this value on for 'infinite' and 'not set'.
_NO_VALUE = 0xFFFFFFFE
FOREIGN = "it is a job of another user"
#: Accounting may report the end of a job this many seconds before the end of its steps.
_STEPS_COME_LATER = 6.0
_DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


class Unreadable(ValueError):
    """An answer in an unknown format, or an answer that reports an error."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The jobs of one user by ID; `whole` is true if Slurm sent the jobs of all users, as 22.05 does for JSON."""

    jobs: dict[str, JobInfo]
    whole: bool = False


def parse_state(words: str | Sequence[str]) -> JobState:
    """Return the state for Slurm's word or words (`CANCELLED by 1000`, `["RUNNING", "COMPLETING"]`)."""
    known = [words] if isinstance(words, str) else [str(word) for word in words]
    known = [word.strip().partition(" ")[0].rstrip("+") for word in known]
    living = [name for name in known if name in _LIVING]
    word = next((flag for flag in _FLAGS if flag in known), (living or known or [""])[0])
    return JobState(word) if word in JobState.__members__ else _OTHER_WORDS.get(word, JobState.UNKNOWN)


def expand_hosts(text: str) -> tuple[str, ...]:
    """Return the host names of a compact list: `nid[001-003,010],login1` expands to five names."""
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text.strip()):
        if item in ("None assigned", "(null)", "N/A"):
            continue
        parts = re.split(r"\[([^\]]*)\]", item)
        choices = [[part] if place % 2 == 0 else _numbers(part) for place, part in enumerate(parts)]
        names += map("".join, itertools.product(*choices))
    return tuple(names)


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        low, dash, high = part.partition("-")
        if dash and low.isdigit() and high.isdigit():
            found += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
        else:
            found.append(part)
    return found


def parse_queue_json(output: str, *, uid: int, now: float) -> Queue:
    """Return the jobs of the user `uid` in the output of `squeue --json` at `now` (seconds since 1970).

    Raises Unreadable if the output has another format or reports `errors`. Without slurmctld, 22.05 prints an empty
    queue with exit status 0 and the error under `errors`.
    """
    try:
        answer = _object(output)
        if answer.get("errors"):
            raise Unreadable(f"squeue --json reports {answer['errors'][0]}")
        jobs = answer["jobs"]
        mine = [job for job in jobs if _number(job.get("user_id", uid)) == uid]
        found = _by_id(_from_json(job, now) for job in mine)
    except (AttributeError, IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise Unreadable(f"squeue --json is not in a known form: {error!r}") from error
    return Queue(jobs=found, whole=len(mine) < len(jobs))


def _object(output: str) -> dict[str, Any]:
    """Return the first JSON object that begins a line of `output`; a site's banner may surround it."""
    places = [match.start() for match in re.finditer(r"^\{", output, re.MULTILINE)] or [max(output.find("{"), 0)]
    for place in places:
        with contextlib.suppress(json.JSONDecodeError):
            found, _ = json.JSONDecoder().raw_decode(output, place)
            return dict(found)
    raise Unreadable("squeue --json printed no object of JSON")


def _from_json(job: dict[str, object], now: float) -> JobInfo:
    words = job["job_state"]
    state = parse_state(words if isinstance(words, str | list) else str(words))
    start, end, limit = (_number(job.get(name)) for name in ("start_time", "end_time", "time_limit"))
    restarts = _number(job.get("restart_cnt"))
    return JobInfo(
        id=str(int(_number(job["job_id"]) or 0)),
        state=state,
        nodes=expand_hosts(_text(job.get("nodes"))),
        time_left=time_left(state, end=end, limit=limit, now=now),
        unused=max(0.0, limit * 60 - (end - start)) if state.over and limit and start and end else None,
        reason=plain_reason(_text(job.get("state_reason"))),
        name=_text(job.get("name")),
        submit=_number(job.get("submit_time")) or None,
        start=start or None,
        end=end or None if state.over else None,
        restarts=None if restarts is None else int(restarts),
    )


def time_left(state: JobState, *, end: float | None, limit: float | None, now: float) -> float | None:
    """Return the seconds that a job has left, from its `end` (seconds since 1970) and its `limit` (minutes)."""
    if state.over or limit is None:
        return None
    if state is JobState.PENDING:
        return limit * 60
    return max(0.0, end - now) if end else None


def plain_reason(text: str) -> str:
    """Return Slurm's reason; '' for the placeholders None, (null) and N/A."""
    return "" if text in ("None", "(null)", "N/A") else text


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    """Return a plain number, or a wrapped one of 23.02 and later; None for not set and infinite."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value >= _NO_VALUE:
        return None
    return float(value)


def parse_queue_lines(output: str) -> Queue:
    """Return the jobs in the output of `squeue --noheader --format=QUEUE_FIELDS`; other lines are skipped."""
    rows = [line.split("|", 7) for line in output.splitlines()]
    return Queue(jobs=_by_id(_from_row(row) for row in rows if len(row) == 8 and row[0].isdigit()))


def _by_id(rows: Iterable[JobInfo]) -> dict[str, JobInfo]:
    """Return the jobs by ID: of several rows of a job, the last one that says that the job lives, else the last."""
    found: dict[str, JobInfo] = {}
    for info in rows:
        before = found.get(info.id)
        if before is None or _lives(info) or not _lives(before):
            found[info.id] = info
    return found


def _lives(info: JobInfo) -> bool:
    return not info.state.over and info.state is not JobState.UNKNOWN


def _from_row(row: list[str]) -> JobInfo:
    number, word, nodes, left, reason, submit, start, name = row
    state = parse_state(word)
    return JobInfo(
        id=number,
        state=state,
        nodes=expand_hosts(nodes),
        time_left=None if state.over else parse_duration(left),
        unused=parse_duration(left) if state.over else None,
        reason=plain_reason(reason),
        name=name,
        submit=parse_time(submit),
        start=parse_time(start),
    )


def parse_duration(text: str) -> float | None:
    """Return a duration such as `1-02:03:04`, `12:00:00` or `4:59` in seconds; None for UNLIMITED and other words."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def parse_time(text: str) -> float | None:
    """Return seconds since 1970 of `1795329367`, or of the local time `2026-11-22T06:36:07`; None for other text."""
    text = text.strip()
    if text.isdigit():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def parse_accounting(output: str, *, uid: int, now: float = math.inf) -> dict[str, JobInfo]:
    """Return the jobs in the output of `sacct --parsable2 --format=ACCOUNT_FIELDS` at `now`, by ID.

    A job of another user is UNKNOWN. A FAILED job with a step that ran out of memory is OUT_OF_MEMORY, because Slurm
    reports that state for the step only. A job that FAILED less than 6 s ago is COMPLETING: its steps may follow.
    """
    rows = [row for row in (line.split("|", 10) for line in output.splitlines()) if len(row) == 11]
    starved = {row[0].partition(".")[0]: row[0] for row in rows if row[2].startswith("OUT_OF_ME")}
    jobs = _by_id(_from_account(row, uid) for row in rows if row[0].isdigit())
    for job, info in jobs.items():
        if info.state is JobState.FAILED and job in starved:
            jobs[job] = replace(info, state=JobState.OUT_OF_MEMORY, reason=f"step {starved[job]} ran out of memory")
        elif info.state is JobState.FAILED and (info.end or 0.0) > now - _STEPS_COME_LATER:
            jobs[job] = replace(info, state=JobState.COMPLETING)
    return jobs


def _from_account(row: Iterable[str], uid: int) -> JobInfo:
    number, owner, words, nodes, submit, start, exit_code, reason, limit, elapsed, name = row
    if owner.isdigit() and int(owner) != uid:
        return JobInfo(id=number, state=JobState.UNKNOWN, reason=f"{FOREIGN}, uid {owner}")
    state = parse_state(words)
    reason = plain_reason(reason) or (words if " by " in words else "")
    if state is JobState.FAILED and not reason:
        status, _, number_of_signal = exit_code.partition(":")
        reason = f"ended by signal {number_of_signal}" if number_of_signal not in ("", "0") else f"exit status {status}"
    planned, spent, began = parse_duration(limit), parse_duration(elapsed), parse_time(start)
    return JobInfo(
        id=number,
        state=state,
        nodes=expand_hosts(nodes),
        unused=max(0.0, planned - spent) if state.over and planned is not None and spent is not None else None,
        reason=reason,
        name=name,
        submit=parse_time(submit),
        start=began,
        end=(began or 0.0) + (spent or 0.0) if state.over and (began or spent) else None,
    )
