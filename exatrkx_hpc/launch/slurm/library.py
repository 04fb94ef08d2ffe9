"""pyslurm as a faster way to query Slurm's queue, if it is installed for this release of Slurm."""

from __future__ import annotations

import importlib
import re
from importlib import metadata

from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.launch.slurm.parse import Queue, expand_hosts, parse_state, plain_reason, time_left

_RELEASE = re.compile(r"^slurm\S* (\d+\.\d+)", re.MULTILINE | re.ASCII)


def library_release() -> str:
    """Return the release of Slurm that the installed pyslurm is for, such as `25.11`; '' without pyslurm."""
    try:
        return release(f"slurm {metadata.version('pyslurm')}")
    except metadata.PackageNotFoundError:
        return ""


def release(version: str) -> str:
    """Return the release in the output of `squeue --version` (`slurm-wlm 22.05.8`), or ''.

    pyslurm is imported only if this is its own release; otherwise its C library ends the whole process.
    """
    match = _RELEASE.search(version)
    return match[1] if match else ""


def library_queue(*, uid: int, now: float) -> Queue | None:
    """Return the user's jobs from pyslurm; None on any error, so that the caller uses Slurm's commands."""
    try:
        jobs = importlib.import_module("pyslurm").Jobs.load().values()
        found = (_info(job, now) for job in jobs if job.user_id == uid)
        return Queue(jobs={info.id: info for info in found})
    except Exception:  # for any error of the library, fall back to the commands
        return None


def _info(job: object, now: float) -> JobInfo:
    def of(name: str) -> object:
        return getattr(job, name)

    def number(name: str) -> float | None:
        value = of(name)
        return float(value) if isinstance(value, int | float) and value else None

    state = parse_state(str(of("state")))
    return JobInfo(
        id=str(of("id")),
        state=state,
        nodes=expand_hosts(str(of("allocated_nodes") or "")),
        time_left=time_left(state, end=number("end_time"), limit=number("time_limit"), now=now),
        reason=plain_reason(str(of("state_reason") or "")),
        name=str(of("name") or ""),
        submit=number("submit_time"),
        start=number("start_time"),
    )
