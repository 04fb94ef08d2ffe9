"""The result of one observation by the monitor, and the changes of the job that are news."""

from __future__ import annotations

from dataclasses import dataclass

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import News
from exatrkx_hpc.fleet.events import JobChanged, SchedulerSilent
from exatrkx_hpc.fleet.members.reconcile import Member, ready_members


@dataclass(frozen=True, kw_only=True)
class View:
    """The result of one observation: the job with its reason explained, and its members."""

    info: JobInfo
    members: tuple[Member, ...]

    @property
    def job(self) -> JobState:
        """The job's state."""
        return self.info.state

    @property
    def sentence(self) -> str:
        """The job's state and its reason: `job 42 is TIMEOUT: it reached its time limit; …`."""
        return f"job {self.info.id} is {self.job.value}" + (f": {self.info.reason}" if self.info.reason else "")

    @property
    def ready(self) -> tuple[Member, ...]:
        """The members that receive requests."""
        return ready_members(self.members)


def job_news(before: JobInfo, now: JobInfo) -> News | None:
    """Return the news of the job, or None if nothing changed."""
    if not now.answered:
        return SchedulerSilent(job=now.id, reason=now.reason) if before.answered else None
    if before.answered and before.state is now.state and (now.state.over or before.reason == now.reason):
        return None
    return JobChanged(job=now.id, state=now.state, reason=now.reason, back=not before.answered)
