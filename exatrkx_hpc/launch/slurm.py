"""Slurm's commands, each as a pair: the words that ask, and the reading of the answer."""

from __future__ import annotations

import re
from pathlib import Path

from exatrkx_hpc.errors import LaunchError
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.scheduler import JobState
from exatrkx_hpc.process import Completed, find_program, run

_REMEDY = "run this where Slurm's commands are, or set cluster.scheduler to 'local' for this machine alone"
#: Slurm's further states, as what they mean for a farm; a word that is nowhere is UNKNOWN.
_OTHER_WORDS = {
    "BOOT_FAIL": JobState.NODE_FAIL,
    "CONFIGURING": JobState.PENDING,
    "DEADLINE": JobState.TIMEOUT,
    "REQUEUED": JobState.PENDING,
    "RESIZING": JobState.RUNNING,
    "REVOKED": JobState.CANCELLED,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
}


def sbatch_argv(script: Path) -> list[str]:
    """Return the command that submits `script` and prints the job's id."""
    return ["sbatch", "--parsable", str(script)]


def parse_job_id(output: str) -> str:
    """Return the job id of `sbatch --parsable`, which prints `id` or `id;cluster`.

    Raises LaunchError when there is none.
    """
    match = re.match(r"(\d+)(;\S+)?\s*$", output)
    if match is None:
        raise LaunchError(f"sbatch printed {output.strip()!r} where a job id was expected; see 'squeue --me'")
    return match[1]


def squeue_argv() -> list[str]:
    """Return the command that lists all jobs of this user: asking for one alone fails once it has ended."""
    return ["squeue", "--me", "--noheader", "--states=all", "--format=%i %T"]


def parse_states(output: str) -> dict[str, JobState]:
    """Return the state of each job that `squeue` listed; a state without a name here is UNKNOWN."""
    lines = (line.split() for line in output.splitlines())
    return {words[0]: _state(words[1]) for words in lines if len(words) == 2}


def sacct_argv(job: str) -> list[str]:
    """Return the command that tells the state of a job which may have left the queue."""
    return ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobIDRaw,State"]


def parse_accounting(output: str, job: str) -> JobState:
    """Return the state of `job` in sacct's answer (`42|CANCELLED by 1000`), UNKNOWN when it is not there."""
    for line in output.splitlines():
        number, _, words = line.partition("|")
        if number == job:
            return _state(words)
    return JobState.UNKNOWN


def _state(words: str) -> JobState:
    word = words.strip().partition(" ")[0].rstrip("+")
    return JobState(word) if word in JobState.__members__ else _OTHER_WORDS.get(word, JobState.UNKNOWN)


def scancel_argv(job: str, *, drain: bool) -> list[str]:
    """Return the command that ends `job`; without `drain` its servers are told to skip the drain first."""
    return ["scancel", job] if drain else ["scancel", "--signal=USR1", job]


class Slurm:
    """The scheduler of a cluster."""

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit `script` and return the job's id; raises LaunchError when Slurm refuses it."""
        done = self._ask(sbatch_argv(script))
        if done.returncode:
            raise LaunchError(
                f"sbatch refused {script} (exit {done.returncode}): {done.complaint}. "
                "Check [job] in farm.toml; 'sacctmgr show assoc user=$USER' lists what you may use"
            )
        return parse_job_id(done.stdout)

    def state(self, job: str) -> JobState:
        """Return the job's state from the queue, or from the accounting once it has left the queue."""
        queue = self._ask(squeue_argv())
        states = parse_states(queue.stdout) if queue.returncode == 0 else {}
        if job in states:
            return states[job]
        accounting = self._ask(sacct_argv(job))
        return parse_accounting(accounting.stdout, job)

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job; raises LaunchError when Slurm refuses."""
        done = self._ask(scancel_argv(job, drain=drain))
        if done.returncode:
            raise LaunchError(f"scancel refused job {job} (exit {done.returncode}): {done.complaint}")

    def _ask(self, argv: list[str]) -> Completed:
        return run([find_program(argv[0], remedy=_REMEDY), *argv[1:]], timeout=60)
