"""Checks that every scheduler must pass. `schedulers.py KIND RUN_ROOT` runs them on its machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.plan import FarmPlan, make_plan
from exatrkx_hpc.launch.scheduler import Scheduler
from exatrkx_hpc.launch.schedulers import SCHEDULERS, scheduler_of

#: A job that ends on the drain and halt signals, like a farm's script. `submitted` adds the farm's job name and output.
WAITS = "#!/usr/bin/env bash\n#SBATCH --account=m1234\ntrap 'exit 0' TERM USR1 USR2\nsleep 600 & wait\n"
FAILS = "#!/usr/bin/env bash\n#SBATCH --account=m1234\nexit 3\n"


def made(kind: str, run_root: Path) -> tuple[Scheduler, FarmPlan]:
    """Return a scheduler of this kind, and the plan of a farm that uses it."""
    flags = {
        "site": "generic",
        "run_root": str(run_root),
        "cluster.scheduler": kind,
        "cluster.local_address": "127.0.89.1",
        "server.engine": "none",
        "server.triton": "/bin/true",
        "server.drain": 0,
        "server.exit_timeout": 2,
        "job.nodes": 1,
    }
    farm = resolve(flags=flags, ambient=False).farm
    return scheduler_of(farm), make_plan(farm)


def submitted(scheduler: Scheduler, plan: FarmPlan, folder: Path, text: str) -> str:
    script = folder / "job.sh"
    known_by = [f"#SBATCH --{key}={value}" for key, value in plan.directives if key in ("job-name", "output")]
    first, *others = text.splitlines()
    script.write_text("\n".join([first, *known_by, *others, ""]))
    job = scheduler.submit(script, plan)
    assert job.isdigit(), job
    return job


def becomes(scheduler: Scheduler, job: str, *states: JobState) -> JobInfo:
    until = time.monotonic() + 120
    while (now := scheduler.info(job)).state not in states:
        assert time.monotonic() < until, now
        assert now.id == job
        time.sleep(0.2)
    return now


def hold_life(scheduler: Scheduler, plan: FarmPlan, folder: Path, *, drain: bool = True) -> None:
    """Check a job from submission to its end; a second cancel changes nothing."""
    job = submitted(scheduler, plan, folder, WAITS)
    first = scheduler.info(job)
    assert first.answered and first.id == job and not first.state.over
    running = becomes(scheduler, job, JobState.RUNNING)
    assert running.nodes and running.name
    scheduler.cancel(job, drain=drain)
    ended = scheduler.info(job)
    assert ended.state in (JobState.CANCELLED, JobState.COMPLETED), "cancel returned before the end"
    scheduler.cancel(job)
    assert scheduler.info(job).state is ended.state


def hold_failure(scheduler: Scheduler, plan: FarmPlan, folder: Path) -> None:
    """Check that a job whose script fails is FAILED."""
    becomes(scheduler, submitted(scheduler, plan, folder, FAILS), JobState.FAILED)


def hold_stranger(scheduler: Scheduler) -> None:
    """Check an unknown job: `info` returns UNKNOWN or raises LaunchError, and `cancel` raises LaunchError."""
    try:
        assert scheduler.info("987654").state is JobState.UNKNOWN
    except LaunchError as error:
        assert "987654" in str(error)
    try:
        scheduler.cancel("987654")
    except LaunchError as error:
        assert "987654" in str(error)
    else:
        raise AssertionError("it ended a job that it never had")


def hold_abilities(kind: str, scheduler: Scheduler) -> None:
    """Check that the table and the scheduler report the same abilities."""
    assert scheduler.abilities == SCHEDULERS[kind].abilities


if __name__ == "__main__":
    _kind, _folder = sys.argv[1], Path(sys.argv[2])
    _folder.mkdir(exist_ok=True)
    _scheduler, _plan = made(_kind, _folder)
    hold_abilities(_kind, _scheduler)
    hold_life(_scheduler, _plan, _folder)
    hold_life(_scheduler, _plan, _folder, drain=False)
    hold_failure(_scheduler, _plan, _folder)
    hold_stranger(_scheduler)
    print("held")
