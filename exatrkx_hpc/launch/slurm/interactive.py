"""Run a farm's script from this terminal: in the shell's allocation, or in a new one from salloc."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import Child, session_members, spawn
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.slurm.environment import names_cluster, slurm_environment
from exatrkx_hpc.launch.slurm.refusals import next_step, own_words, unclear

#: Options that sbatch has and salloc has not.
_BATCH_ONLY = {"output", "requeue", "no-requeue"}
_GIVEN = re.compile(r"\b(?:Granted|Pending) job allocation ([1-9][0-9]*)\b")
#: In seconds. salloc prints the job ID as soon as Slurm accepts the job, even if pending; a controller may be slow.
_NAME_DEADLINE = 180.0
#: The next step if it is unknown whether a job exists.
_LATER = "its job may exist: the next 'exatrkx-hpc status' takes it over when Slurm reports it"
#: Time, in seconds, that srun has to end the tasks of its step.
_STEP_DEADLINE = 15.0


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The Slurm job of this shell; `nodes` is 0 if Slurm does not report their number.

    `cluster` is empty unless the allocation was requested on another cluster than that of this machine.
    """

    job: str
    nodes: int
    cluster: str = ""


def allocation(environment: Mapping[str, str]) -> Allocation | None:
    """Return the allocation of a shell with these variables, or None."""
    job = environment.get("SLURM_JOB_ID", "")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    if not job.isdigit():
        return None
    cluster = environment.get("SLURM_WORKING_CLUSTER", "").partition(":")[0]
    return Allocation(job=job, nodes=int(nodes) if nodes.isdigit() else 0, cluster=cluster)


def salloc_argv(plan: FarmPlan, *, comment: str | None = None) -> list[str]:
    """Return the command that requests the same allocation as the plan's batch job, with this comment if given."""
    pairs = [(name, _salloc_value(name, value)) for name, value in plan.directives if name not in _BATCH_ONLY]
    options = [f"--{name}={value}" if value else f"--{name}" for name, value in pairs]
    return ["salloc", *options, *plan.extra_directives, *([f"--comment={comment}"] if comment else [])]


def _salloc_value(name: str, value: str) -> str:
    """Remove `B:` from the signal, so that the servers get it: there is no batch script."""
    return re.sub(r"^([BR]*)B([BR]*):", "", value) if name == "signal" else value


def job_argv(script: Path, run_root: Path) -> list[str]:
    """Return the command that runs `script` in the current allocation, as slurmd runs a batch script."""
    return ["bash", str(asset("jobs/interactive-job.sh")), str(script), str(run_root)]


class Foreground:
    """A started script, with its salloc if needed; both run in a new session."""

    def __init__(self, child: Child, log: Path) -> None:
        """Take over a started program that writes to `log`."""
        self._child = child
        self._log = log

    def runs(self) -> bool:
        """Return whether the program still runs."""
        return self._child.returncode() is None

    def name(self) -> str:
        """Return the job ID of salloc, pending or not; raises LaunchError if Slurm refuses the job.

        Raises JobMayRunError if salloc is killed, or reports no ID within 180 s.
        """
        until = time.monotonic() + _NAME_DEADLINE
        while time.monotonic() < until:
            ended = not self.runs()
            if match := _GIVEN.search(said := self._log.read_text(errors="replace")):
                return match[1]
            if ended:
                raise _without_job(self._child.returncode() or 0, said)
            time.sleep(0.05)
        self.kill()
        raise JobMayRunError(f"salloc reported no job ID within {_NAME_DEADLINE:g} s; {_LATER}")

    def settle(self, seconds: float) -> None:
        """Wait `seconds` for the end of the program, then kill it."""
        if self._child.wait(seconds) is None:
            self.kill()
        else:
            self._child.stop(grace=0)

    def kill(self) -> None:
        """End the step of the servers first, so that no task remains on a node; then end the program."""
        for pid in session_members(self._child.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "srun":
                    os.kill(pid, signal.SIGTERM)
        self._child.wait(_STEP_DEADLINE)
        self._child.stop(grace=5)


def begin(script: Path, plan: FarmPlan, *, comment: str | None) -> Foreground:
    """Start `script` in a new allocation with this comment, or without a comment in the allocation of this shell."""
    inside = comment is None
    run = job_argv(script, Path(plan.run_root))
    log = script.with_suffix(".log")
    clusters = not any(map(names_cluster, plan.extra_directives))
    environment = slurm_environment(os.environ, clusters=clusters and not inside, inside=inside)
    return Foreground(
        spawn(run if inside else [*salloc_argv(plan, comment=comment), *run], log=log, env=environment), log
    )


def _without_job(status: int, said: str) -> LaunchError:
    if unclear(status, said):
        return JobMayRunError(f"salloc ended with status {status} and reported no job ID: {own_words(said)}; {_LATER}")
    step = next_step(said, otherwise="check [job] in farm.toml")
    return LaunchError(f"salloc was refused: {own_words(said)}; {step}")
