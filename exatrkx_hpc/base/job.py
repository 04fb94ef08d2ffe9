"""A job of a scheduler: its states, and the facts that the scheduler reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class JobState(str, Enum):
    """Slurm's job states, and UNKNOWN for a job that the scheduler does not report."""

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
        """Whether the job has ended permanently; False for UNKNOWN."""
        return self not in _ALIVE


_ALIVE = {JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.UNKNOWN}


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """The scheduler's facts on a job at one moment; unreported facts are empty or None.

    `nodes` are host names. `time_left` is in seconds: until the limit of a running job, or the whole limit of a
    pending job; None without a limit or after the end. `unused` is the part of the limit that an ended job did not
    use, in seconds. `submit` and `start` are in seconds since 1970. `start` of a pending job is Slurm's estimate;
    `submit` of a requeued job is the time of the requeue. `end` is that of an ended job, in seconds since 1970.
    `restarts` counts the requeues. `reason` explains the state. `answered` is False if the
    scheduler did not answer at all. `cluster` is empty for the cluster of this machine.
    """

    id: str
    state: JobState
    nodes: tuple[str, ...] = ()
    time_left: float | None = None
    reason: str = ""
    name: str = ""
    submit: float | None = None
    start: float | None = None
    end: float | None = None
    restarts: int | None = None
    unused: float | None = None
    answered: bool = True
    cluster: str = ""
