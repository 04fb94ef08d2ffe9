"""Checks for orphans on this machine: containers and processes of ended jobs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding, refused
from exatrkx_hpc.fleet.balancer.balancers import BALANCERS
from exatrkx_hpc.fleet.orphans import farm_processes
from exatrkx_hpc.launch.embedded.cleanup import containers, removal_argv

#: The programs that a monitor starts, by name.
OF_MONITORS = (*(kind.program for kind in BALANCERS.values()), "prometheus")


def orphan_findings(farm: Farm, state: Callable[[str], JobState]) -> Iterator[Finding]:
    """Yield the orphans of ended jobs of this run root, each with the command that removes them.

    A job in an unknown state counts as running.
    """
    engine, run_root = farm.server.engine, Path(farm.run_root)
    over = _Over(run_root, state)
    try:
        left = [container for container in containers(engine, run_root) if over(container.job)]
    except MissingComponent:  # the check of the engine reports it
        left = []
    except LaunchError as error:
        yield refused("orphaned containers", str(error))
        left = []
    if left:
        names = [container.name for container in left]
        remedy = shlex.join(removal_argv(engine, names))
        yield Finding(what="orphaned containers", ok=False, found=", ".join(names), remedy=remedy)
    processes = [process for process in farm_processes(run_root, of_monitors=OF_MONITORS) if over(process.job)]
    if processes:
        found = ", ".join(f"{process.program} {process.pid} of job {process.job}" for process in processes)
        remedy = shlex.join(["kill", "-KILL", *(str(process.pid) for process in processes)])
        yield Finding(what="orphaned processes", ok=False, found=found, remedy=remedy)
    if not left and not processes:
        yield Finding(what="orphans", ok=True, found="none of earlier jobs on this machine")


class _Over:
    """Whether a job has ended, cached per job; a job without a run directory counts as ended."""

    def __init__(self, run_root: Path, state: Callable[[str], JobState]) -> None:
        self._run_root = run_root
        self._state = state
        self._known: dict[str, bool] = {}

    def __call__(self, job: str) -> bool:
        if job not in self._known:
            self._known[job] = not (self._run_root / job).is_dir() or self._ask(job)
        return self._known[job]

    def _ask(self, job: str) -> bool:
        try:
            return self._state(job).over
        except LaunchError:
            return False
