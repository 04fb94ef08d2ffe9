"""A job of a scheduler: its states, and what is known of it at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobState(str, Enum):
    """The states of a job, in Slurm's words, and UNKNOWN: not reported."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    UNKNOWN = "UNKNOWN"

    @property
    def over(self) -> bool:
        """Whether the job has ended permanently; UNKNOWN has not."""
        return self not in _ALIVE


_ALIVE = {JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.UNKNOWN}


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """What the scheduler says of a job at one moment; what it does not say is empty or None.

    `nodes` are host names. `time_left` is in seconds: to the end of a running job, or the limit of one that has
    not begun; None where there is no limit or the job is over. `unused` is what a job that is over had left of its
    limit, in seconds. `submit` and `start` are seconds since 1970; `start` of a pending job is when Slurm expects
    it, and `submit` of a requeued one is when it came back into the queue. `reason` says why the state is what it
    is. With `answered` false the scheduler said nothing, of this job or of any other. `cluster` is empty for
    the cluster of this machine.
    """

    id: str
    state: JobState
    nodes: tuple[str, ...] = ()
    time_left: float | None = None
    reason: str = ""
    name: str = ""
    submit: float | None = None
    start: float | None = None
    unused: float | None = None
    answered: bool = True
    cluster: str = ""
