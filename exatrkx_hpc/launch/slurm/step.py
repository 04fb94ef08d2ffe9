"""Run one program on each node of an allocation as a job step of srun, until the last one ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.process import Child, find_program, spawn
from exatrkx_hpc.base.signals import noted_signals
from exatrkx_hpc.launch.slurm.environment import slurm_environment
from exatrkx_hpc.launch.slurm.refusals import own_words
from exatrkx_hpc.launch.slurm.scheduler import REMEDY, Slurm

#: How long programs that were asked to end may take; then they are killed.
_GRACE: Final = 30.0
#: srun kills its programs when it is told to end, and waits for them; Slurm's own KillWait is 30 s.
_KILL_WAIT: Final = 40.0
_LOOK: Final = 0.5
#: What an allocation says of its size; the step has its own.
_OF_THE_ALLOCATION: Final = frozenset({"SLURM_NNODES", "SLURM_JOB_NUM_NODES"})


def srun_argv(nodes: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return what runs `command` once on each of the nodes, with all the CPUs that the job has there.

    Programs of the job that run there already, such as servers, stay (`--overlap`). The death of one program, or of
    a node, does not end the others. Seen with Slurm 22.05.
    """
    number = str(len(nodes))
    size = (f"--nodes={number}", f"--ntasks={number}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}")
    alone = ("--kill-on-bad-exit=0", "--no-kill", "--wait=0")
    return ["srun", *size, "--overlap", "--cpu-bind=none", *alone, *command]


def nodes_of(job: str, *, cluster: str = "", most: int | None = None, slurm: Slurm | None = None) -> tuple[str, ...]:
    """Return the nodes that the job of `cluster` has now, those that it lost left out, and no more than `most`.

    Raises LaunchError when Slurm does not say, or the job has fewer.
    """
    info = (slurm or Slurm(cluster=cluster)).info(job)
    if info.state is not JobState.RUNNING or not info.nodes:
        raise LaunchError(f"job {job} is {info.state.value} ({info.reason}); 'squeue --me' lists your jobs")
    return info.nodes[:most]


def run_step(
    nodes: Sequence[str],
    command: Sequence[str],
    *,
    log: Path,
    stop: signal.Signals,
    look: Callable[[], None],
    heard: Callable[[str], None],
) -> str:
    """Run `command` on each of the nodes to its end, and return the name of the signal that stopped it, or nothing.

    `look` is called now and then; each line that a program says goes to `heard`, and to `log`. SIGTERM, SIGINT and
    SIGHUP at this process reach the programs as `stop`; those that have not ended after 30 s, or at a second signal,
    are killed. Raises LaunchError when srun fails, MissingComponent when it is not here.
    """
    find_program("srun", remedy=REMEDY)
    words = _Words(log)
    with noted_signals() as signals:
        child = spawn(srun_argv(nodes, command), log=log, env=_environment(os.environ))
        try:
            _follow(child, signals, stop, (lambda: words.show(heard), look))
        finally:
            child.stop(grace=_KILL_WAIT)
    words.show(heard)
    if child.returncode() and not signals:
        raise LaunchError(f"srun failed (exit {child.returncode()}): {own_words(words.last)}; see {log}")
    return signals[0] if signals else ""


def _follow(child: Child, signals: list[str], stop: signal.Signals, looks: Sequence[Callable[[], None]]) -> None:
    """Wait for the end, or for that of the patience with those who were asked to end."""
    until = None
    while child.wait(_LOOK) is None:
        for look in looks:
            look()
        if signals and until is None:
            until = time.monotonic() + _GRACE
            # To SIGTERM srun would answer by killing its programs; this one it hands on.
            child.send(stop)
        if until is not None and (len(signals) > 1 or time.monotonic() > until):
            return


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    inside = slurm_environment(variables, inside=True)
    return {name: value for name, value in inside.items() if name not in _OF_THE_ALLOCATION}


class _Words:
    """The lines of a log that are new."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._place = log.stat().st_size if log.exists() else 0
        self.last = ""

    def show(self, heard: Callable[[str], None]) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._place += len(whole) + 1
            lines = whole.decode(errors="replace").splitlines()
            # News of a task is no reason of srun's.
            self.last = "\n".join(line for line in lines if not line.startswith("{")) or self.last
            for line in lines:
                heard(line)
