"""A farm's script run from this terminal: in the allocation that the shell is in, or in one that salloc gets."""

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
from exatrkx_hpc.launch.slurm.environment import names_cluster, slurm_environment
from exatrkx_hpc.launch.slurm.refusals import next_step, own_words

#: What sbatch knows and salloc does not.
_BATCH_ONLY = {"output", "requeue", "no-requeue"}
_GIVEN = re.compile(r"\b(?:Granted|Pending) job allocation ([1-9][0-9]*)\b")
#: salloc names the job as soon as Slurm has taken it, be it pending; a controller may be slow.
_NAME_DEADLINE = 180.0
#: srun ends the tasks of its step when it is told to end.
_STEP_DEADLINE = 15.0


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The Slurm job that this shell is in; `nodes` is 0 when Slurm does not say how many it has.

    `cluster` is empty unless the allocation was asked of another cluster than that of this machine.
    """

    job: str
    nodes: int
    cluster: str = ""


def allocation(environment: Mapping[str, str]) -> Allocation | None:
    """Return the allocation that a shell with these variables is in, or None."""
    job = environment.get("SLURM_JOB_ID", "")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    if not job.isdigit():
        return None
    cluster = environment.get("SLURM_WORKING_CLUSTER", "").partition(":")[0]
    return Allocation(job=job, nodes=int(nodes) if nodes.isdigit() else 0, cluster=cluster)


def salloc_argv(plan: FarmPlan) -> list[str]:
    """Return the command that gets an allocation like the one that the plan's batch job would have."""
    pairs = [(name, _salloc_value(name, value)) for name, value in plan.directives if name not in _BATCH_ONLY]
    options = [f"--{name}={value}" if value else f"--{name}" for name, value in pairs]
    return ["salloc", *options, *plan.extra_directives]


def _salloc_value(name: str, value: str) -> str:
    """Send the signal to the servers themselves: there is no batch script, which `B:` would name."""
    return re.sub(r"^([BR]*)B([BR]*):", "", value) if name == "signal" else value


def job_argv(script: Path, run_root: Path) -> list[str]:
    """Return the command that runs `script` in the allocation of its environment, as slurmd runs a batch job's."""
    return ["bash", str(asset("jobs/interactive-job.sh")), str(script), str(run_root)]


class Foreground:
    """A started script with its salloc, if it needed one; both are in a session of their own."""

    def __init__(self, child: Child, log: Path) -> None:
        """Take over a started program that writes to `log`."""
        self._child = child
        self._log = log

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._child.returncode() is None

    def name(self) -> str:
        """Return the id of the job that salloc was given, pending or not; raises LaunchError when it is refused."""
        until = time.monotonic() + _NAME_DEADLINE
        while time.monotonic() < until:
            ended = not self.runs()
            if match := _GIVEN.search(said := self._log.read_text(errors="replace")):
                return match[1]
            if ended:
                raise _refused(said)
            time.sleep(0.05)
        self.kill()
        raise LaunchError(f"salloc reported no job ID within {_NAME_DEADLINE:g} s; check Slurm with 'scontrol ping'")

    def settle(self, seconds: float) -> None:
        """Give it `seconds` to end, then end it by force."""
        if self._child.wait(seconds) is None:
            self.kill()
        else:
            self._child.stop(grace=0)

    def kill(self) -> None:
        """End it, the step of its servers first, so that no task is left on a node."""
        for pid in session_members(self._child.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "srun":
                    os.kill(pid, signal.SIGTERM)
        self._child.wait(_STEP_DEADLINE)
        self._child.stop(grace=5)


def begin(script: Path, plan: FarmPlan, *, inside: bool) -> Foreground:
    """Start `script`, `inside` the allocation of this shell or in one that salloc gets."""
    run = job_argv(script, Path(plan.run_root))
    log = script.with_suffix(".log")
    clusters = not any(map(names_cluster, plan.extra_directives))
    environment = slurm_environment(os.environ, clusters=clusters and not inside, inside=inside)
    return Foreground(spawn(run if inside else [*salloc_argv(plan), *run], log=log, env=environment), log)


def _refused(said: str) -> LaunchError:
    step = next_step(said, otherwise="check [job] in farm.toml")
    return LaunchError(f"salloc was refused: {own_words(said)}; {step}")
