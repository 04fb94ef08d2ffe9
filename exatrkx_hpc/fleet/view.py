"""What a monitor knows after one look, and what of it is news."""

from __future__ import annotations

from dataclasses import dataclass

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.fleet.members.reconcile import Member, ready_members


@dataclass(frozen=True, kw_only=True)
class View:
    """What a monitor knows after one look: the job, its reason explained, and its members."""

    info: JobInfo
    members: tuple[Member, ...]

    @property
    def job(self) -> JobState:
        """The job's state."""
        return self.info.state

    @property
    def sentence(self) -> str:
        """What the job is and why: `job 42 is TIMEOUT: its time limit is over; …`."""
        return f"job {self.info.id} is {self.job.value}" + (f": {self.info.reason}" if self.info.reason else "")

    @property
    def ready(self) -> tuple[Member, ...]:
        """The members that receive requests."""
        return ready_members(self.members)


def news(before: JobInfo, now: JobInfo) -> str:
    """Return what is new of the job, in one line, or nothing."""
    if not now.answered:
        return f"not known, the endpoint goes on ({now.reason})" if before.answered else ""
    if before.answered and before.state is now.state and (now.state.over or before.reason == now.reason):
        return ""
    back = "" if before.answered else ", Slurm answers again"
    return f"{now.state.value}{back}{f' ({now.reason})' if now.reason else ''}"
