"""Slurm as the scheduler: submit a script, tell of a job, end a job.

How a job is drained: `scancel --batch --signal=USR2` reaches the batch script alone, which passes the word on to
the servers. SIGTERM would do the same, but is Slurm's own word, before the time limit: so the script can tell who
asked. A plain `scancel` signals processes of the steps as well; where Slurm follows processes by their
parents (proctrack/linuxproc) that is every one, Triton too. So that comes last, for a job that did not end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from exatrkx_hpc.errors import LaunchError
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.scheduler import JobInfo, JobState, SchedulerSilentError
from exatrkx_hpc.launch.slurm_answers import parse_job_id
from exatrkx_hpc.launch.slurm_jobs import SlurmJobs
from exatrkx_hpc.launch.slurm_refusals import next_step, own_words
from exatrkx_hpc.process import Completed, find_program, run

#: What to do where one of Slurm's commands is not here.
REMEDY = "run this where Slurm's commands are, or set cluster.scheduler to 'local' for this machine alone"
#: What to do when Slurm is away.
WHEN_IT_IS_BACK = "'scontrol ping' tells when it is back, then try again"
#: Slurm kills what is left of a cancelled job after KillWait, 30 s unless a site says otherwise.
_KILL_WAIT = 60.0


def sbatch_argv(script: Path, *, test_only: bool = False) -> list[str]:
    """Return the command that submits `script` and prints the job's id, or only tells whether it would do."""
    return ["sbatch", "--test-only" if test_only else "--parsable", str(script)]


def drain_argv(job: str) -> list[str]:
    """Return the command that tells the batch script of a running job, and nothing else, to drain its servers."""
    return ["scancel", "--batch", "--signal=USR2", job]


def halt_argv(job: str) -> list[str]:
    """Return the command that tells the batch script of a running job to end its servers without a drain."""
    return ["scancel", "--batch", "--signal=USR1", job]


def cancel_argv(job: str) -> list[str]:
    """Return the command that ends a job in any state, with SIGTERM and after a while SIGKILL to its processes."""
    return ["scancel", job]


def requeue_argv(job: str) -> list[str]:
    """Return the command that lets a running job begin anew, if it was submitted as one that may."""
    return ["scontrol", "requeue", job]


class Slurm:
    """The scheduler of a cluster."""

    def __init__(
        self,
        *,
        grace: float = 60.0,
        jobs: SlurmJobs | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the cluster of this machine; a job that drains has `grace` seconds before it is cancelled.

        `jobs` answers what is asked of jobs; `clock` and `sleep` measure and pass the time of `cancel`.
        """
        self._grace = grace
        self._jobs = jobs or SlurmJobs(ask)
        self._clock = clock
        self._sleep = sleep
        self._answered = False

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Submit `script` and return the job's id; raises LaunchError when Slurm refuses it."""
        job = submit(script)
        self._answered = True
        return job

    def test(self, script: Path) -> str:
        """Return Slurm's word on when `script` would start; raises LaunchError when it would refuse it."""
        done = ask(sbatch_argv(script, test_only=True))
        if done.returncode:
            raise _refused_script(script, done)
        return own_words(done.stderr or done.stdout)

    def info(self, job: str) -> JobInfo:
        """Return what is known of the job; what Slurm does not tell now is UNKNOWN with the reason.

        Raises SchedulerSilentError when Slurm has not answered once: then there is nothing to be patient about.
        """
        info = self._jobs.info(job)
        self._answered = self._answered or info.answered
        if not self._answered:
            raise SchedulerSilentError(f"Slurm does not answer: {info.reason}; {WHEN_IT_IS_BACK}")
        return info

    def state(self, job: str) -> JobState:
        """Return the job's state."""
        return self.info(job).state

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end; one that has ended already is left alone.

        A running job is told to drain its servers (or, without `drain`, to end them at once), and cancelled when
        that takes longer than the grace. Raises LaunchError when Slurm refuses, or cannot end it.
        """
        before = self.info(job)
        if before.state.over or (before.state is not JobState.PENDING and self._told_and_ended(job, drain)):
            return
        done = ask(cancel_argv(job))
        if done.returncode:
            raise _refused("scancel", f"job {job}", done, otherwise="'squeue --me' lists your jobs")
        if not self._ended(job, within=_KILL_WAIT if before.state is not JobState.UNKNOWN else 0):
            raise _cannot_end(self.info(job))

    def _told_and_ended(self, job: str, drain: bool) -> bool:
        """Tell the batch script; it is not there when the job has just ended, or is none of this user's."""
        done = ask(drain_argv(job) if drain else halt_argv(job))
        return done.returncode == 0 and self._ended(job, within=self._grace)

    def _ended(self, job: str, *, within: float) -> bool:
        until = self._clock() + within
        while True:
            self._jobs.forget()
            if self.info(job).state.over:
                return True
            if self._clock() >= until:
                return False
            self._sleep(2.0)


def _cannot_end(left: JobInfo) -> LaunchError:
    """`scancel` is silent about a job that it does not know, and a node may not let go of one."""
    if left.state is JobState.UNKNOWN:
        return LaunchError(f"job {left.id}: {left.reason}; 'squeue --me --states=all' lists your jobs")
    return LaunchError(
        f"job {left.id} is still {left.state.value} {_KILL_WAIT:g} s after scancel; "
        f"'scontrol show job {left.id}' tells more, 'scancel --signal=KILL --full {left.id}' is the last means"
    )


def submit(script: Path, *, section: str = "job") -> str:
    """Submit `script` and return the job's id; raises LaunchError when Slurm refuses it.

    `section` is the one of farm.toml that has the job's account, time and so on.
    """
    done = ask(sbatch_argv(script))
    if done.returncode:
        raise _refused_script(script, done, section=section)
    return parse_job_id(done.stdout)


def give_back(job: str) -> str:
    """Let a running job of this user begin anew, or end it where it may not; return which, or Slurm's words."""
    if ask(requeue_argv(job)).returncode == 0:
        return "it begins anew"
    done = ask(cancel_argv(job))
    return "it is cancelled" if done.returncode == 0 else own_words(done.stderr or done.stdout)


def ask(argv: list[str]) -> Completed:
    """Run one of Slurm's commands, with times as seconds since 1970; raises MissingComponent when it is not here."""
    program = find_program(argv[0], remedy=REMEDY)
    return run([program, *argv[1:]], timeout=60, env={**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"})


def _refused_script(script: Path, done: Completed, *, section: str = "job") -> LaunchError:
    return _refused("sbatch", str(script), done, otherwise=f"check [{section}] in farm.toml", section=section)


def _refused(program: str, what: str, done: Completed, *, otherwise: str, section: str = "job") -> LaunchError:
    said = done.stderr.strip() or done.stdout.strip()
    step = next_step(said, otherwise=otherwise, section=section)
    return LaunchError(f"{program} refused {what} (exit {done.returncode}): {own_words(said)}; {step}")
