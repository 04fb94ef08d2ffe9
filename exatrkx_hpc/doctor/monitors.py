"""Check that the endpoints of the run root have a monitor: a killed one leaves a balancer that nobody updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.fleet.endpoint import health_of, read_endpoint
from exatrkx_hpc.launch.run_dir import FarmDir


def monitor_findings(farm: FarmDir, state: Callable[[str], JobState]) -> Iterator[Finding]:
    """Yield a finding for each job that has not ended and whose endpoint has no monitor."""
    for job in farm.job_ids():
        record = read_endpoint(farm.job(job))
        if record is None or _over(job, state):
            continue
        health = health_of(record)
        if not health.monitor:
            found, _, remedy = health.note.partition("; ")
            remedy = remedy or f"start 'exatrkx-hpc monitor {job}'"
            yield Finding(what="monitor", ok=False, found=f"job {job}: {found}", remedy=remedy)


def _over(job: str, state: Callable[[str], JobState]) -> bool:
    try:
        return state(job).over
    except (LaunchError, MissingComponent):
        return False
