"""What every scheduler can do: take a script, tell a job's state, end a job."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Protocol

from exatrkx_hpc.launch.plan import FarmPlan


class JobState(str, Enum):
    """The states of a job, in Slurm's words, and UNKNOWN: nobody could say."""

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
        """Whether the job has ended for good; UNKNOWN has not."""
        return self not in _ALIVE


_ALIVE = {JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.UNKNOWN}


class Scheduler(Protocol):
    """Slurm, or the embedded one of this machine."""

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit `script` and return the job's id; raises LaunchError when it is refused."""
        ...

    def state(self, job: str) -> JobState:
        """Return the job's state; UNKNOWN when it cannot be told now."""
        ...

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job: its servers leave the balancer first (`drain`), or end at once."""
        ...
