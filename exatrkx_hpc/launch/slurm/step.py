"""Run one program on each node of an allocation as a job step of srun, until the last program ends."""

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

#: In seconds. Programs that do not end this long after a stop signal are killed.
_GRACE: Final = 30.0
#: In seconds. On SIGTERM, srun kills its programs and waits for them; Slurm's KillWait is 30 s.
_KILL_WAIT: Final = 40.0
_LOOK: Final = 0.5
#: Variables with the size of the allocation; the step has its own size.
_OF_THE_ALLOCATION: Final = frozenset({"SLURM_NNODES", "SLURM_JOB_NUM_NODES"})


def srun_argv(nodes: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` once on each node, with all CPUs of the job on that node.

    Running programs of the job, such as servers, keep running (`--overlap`). The end of one program or node does not
    end the others. Tested with Slurm 22.05.
    """
    number = str(len(nodes))
    size = (f"--nodes={number}", f"--ntasks={number}", "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}")
    alone = ("--kill-on-bad-exit=0", "--no-kill", "--wait=0")
    return ["srun", *size, "--overlap", "--cpu-bind=none", *alone, *command]


def nodes_of(job: str, *, cluster: str = "", most: int | None = None, slurm: Slurm | None = None) -> tuple[str, ...]:
    """Return the current nodes of the job of `cluster`, without lost nodes, at most `most`.

    Raises LaunchError if the job is not running or Slurm does not report its nodes.
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
    """Run `command` on each of the nodes to its end; return the name of the signal that stopped it, or ''.

    `look` is called about every 0.5 s. Each output line of a program goes to `heard` and to `log`. SIGTERM, SIGINT or
    SIGHUP to this process reaches the programs as `stop`; after 30 s, or at a second signal, remaining programs are
    killed. Raises LaunchError if srun fails, MissingComponent if srun is missing.
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
    """Wait until the child ends, or until the grace time after a stop signal is over."""
    until = None
    while child.wait(_LOOK) is None:
        for look in looks:
            look()
        if signals and until is None:
            until = time.monotonic() + _GRACE
            # On SIGTERM, srun would kill its programs; it passes `stop` on.
            child.send(stop)
        if until is not None and (len(signals) > 1 or time.monotonic() > until):
            return


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    inside = slurm_environment(variables, inside=True)
    return {name: value for name, value in inside.items() if name not in _OF_THE_ALLOCATION}


class _Words:
    """The new lines of a log."""

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
            # A line of JSON is news of a task, not an error of srun.
            self.last = "\n".join(line for line in lines if not line.startswith("{")) or self.last
            for line in lines:
                heard(line)
