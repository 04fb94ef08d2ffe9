"""The interface of a scheduler: submit a script, report a job's state, end a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.launch.plan import FarmPlan


class SchedulerSilentError(LaunchError):
    """The scheduler has not answered once since this program began."""


class JobMayRunError(LaunchError):
    """It is unknown whether a script was submitted: its job may run."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a scheduler can do, and what its jobs need; who depends on it asks this and not the scheduler's name.

    `other_machines`: jobs run on other machines, which must see the run root.
    `allocations`: a shell can be inside a job, and a script can run from a terminal or spread over a job's nodes.
    `brings_triton`: where the farm names neither a container nor a program, the Triton of the `local` extra serves.
    `builds_models`: the shipped models are built at the first deploy; elsewhere somebody builds them once.
    `measures_direct`: `bench` also runs the models without any server, on this machine, unless a flag says otherwise.
    """

    other_machines: bool
    allocations: bool
    brings_triton: bool
    builds_models: bool
    measures_direct: bool


class Scheduler(Protocol):
    """Slurm, or the embedded one of this machine."""

    @property
    def abilities(self) -> Abilities:
        """What it can do; the same for every job."""
        ...

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit `script` and return the job's id; raises LaunchError when it is refused."""
        ...

    def info(self, job: str) -> JobInfo:
        """Return what is known of the job now; what cannot be told is UNKNOWN with the reason.

        Raises SchedulerSilentError when the scheduler has not answered once since this program began, and LaunchError
        when the scheduler knows that it never had the job.
        """
        ...

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end: its servers leave the balancer first (`drain`), or end at once.

        A job that has ended already is left alone. Raises LaunchError when the job does not end.
        """
        ...
