"""The interface of a scheduler: submit a script, report a job's state, cancel a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.launch.plan import FarmPlan


class SchedulerSilentError(LaunchError):
    """The scheduler has not answered since this program started."""


class JobMayRunError(LaunchError):
    """It is unknown whether the script was submitted; its job may run."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a scheduler can do, and what its jobs need; code checks these flags, not the name of the scheduler.

    `other_machines`: jobs run on other machines, which must see the run root.
    `allocations`: a shell can be inside a job; a script can run from a terminal, or on all nodes of a job.
    `brings_triton`: a farm without a container or its own program uses the Triton of the `local` extra.
    `builds_models`: the first deploy builds the shipped models; with other schedulers, a user builds them once.
    `measures_direct`: by default, `bench` also measures the models on this machine without a server.
    """

    other_machines: bool
    allocations: bool
    brings_triton: bool
    builds_models: bool
    measures_direct: bool


class Scheduler(Protocol):
    """Slurm, or the embedded scheduler of this machine."""

    @property
    def abilities(self) -> Abilities:
        """What the scheduler can do; the same for every job."""
        ...

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit `script` and return the job's ID; its run directory then has the plan.

        Raises LaunchError if the scheduler refuses the script.
        """
        ...

    def settle(self, tell: Tell = untold) -> bool:
        """Take over the jobs of submissions that did not finish; return whether none is left open. News say of each."""
        ...

    def info(self, job: str) -> JobInfo:
        """Return the job's current state; UNKNOWN with a reason if the scheduler does not report it.

        Raises SchedulerSilentError if the scheduler has not answered since this program started, and LaunchError if the
        scheduler knows that it never had the job.
        """
        ...

    def infos(self, jobs: Sequence[str]) -> dict[str, JobInfo]:
        """Return the current states of `jobs`, in one query if the scheduler has one; see `info`.

        A job that the scheduler never had is UNKNOWN.
        """
        ...

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end; with `drain`, its servers leave the balancer first.

        Does nothing if the job has already ended. Raises LaunchError if the job does not end.
        """
        ...
