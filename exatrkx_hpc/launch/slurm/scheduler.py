"""Slurm as the scheduler: query a job, end a job.

How a job is drained: `scancel --batch --signal=USR2` reaches the batch script alone, which passes the word on to
the servers. SIGTERM would do the same, but is Slurm's own word, before the time limit: so the script can tell who
asked. A plain `scancel` signals processes of the steps as well; where Slurm follows processes by their
parents (proctrack/linuxproc) that is every one, Triton too. So that comes last, for a job that did not end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.launch.scheduler import Abilities, SchedulerSilentError
from exatrkx_hpc.launch.slurm.environment import chosen_cluster, slurm_environment
from exatrkx_hpc.launch.slurm.job import JobFacts, Owner, parse_facts, plain_text, same_log
from exatrkx_hpc.launch.slurm.refusals import next_step, own_words
from exatrkx_hpc.launch.slurm.snapshot import SlurmJobs

#: What to do where one of Slurm's commands is not here.
REMEDY = "run this on a machine with Slurm's commands, or set cluster.scheduler to 'local' to use this machine only"
#: What to do when Slurm is away.
WHEN_IT_IS_BACK = "retry when 'scontrol ping' succeeds"
#: Slurm kills what is left of a cancelled job after KillWait, 30 s unless a site says otherwise.
_KILL_WAIT = 60.0


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
    """Return the command that requeues a running job, if it was submitted as requeueable."""
    return ["scontrol", "requeue", job]


def show_job_argv(job: str) -> list[str]:
    """Return the command that shows the owner of a job."""
    return ["scontrol", "show", "job", job]


def script_argv(job: str) -> list[str]:
    """Return the command that prints the script of a job; Slurm shows it to the job's owner alone."""
    return ["scontrol", "write", "batch_script", job, "-"]


class Slurm:
    """The scheduler of one cluster."""

    abilities = Abilities(
        other_machines=True, allocations=True, brings_triton=False, builds_models=False, measures_direct=False
    )

    def __init__(
        self,
        *,
        grace: float = 60.0,
        cluster: str | None = None,
        jobs: SlurmJobs | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the cluster of that name, or with an empty name that of this machine, whatever the shell says.

        Without `cluster` it is the one that the shell chooses. A job that drains has `grace` seconds before it is
        cancelled. `jobs` answers what is asked of jobs; `clock` and `sleep` measure and pass the time of `cancel`.
        """
        self._grace = grace
        self._cluster = chosen_cluster(os.environ) if cluster is None else cluster
        self._ask = partial(ask, cluster=self._cluster)
        # JSON of 22.05 takes no notice of --clusters, and pyslurm knows nothing of it.
        self._jobs = jobs or SlurmJobs(self._ask, lines_only=bool(self._cluster))
        self._clock = clock
        self._sleep = sleep
        self._answered = False

    def info(self, job: str) -> JobInfo:
        """Return what is known of the job; what Slurm does not tell now is UNKNOWN with the reason.

        Raises SchedulerSilentError when Slurm has not answered once: then there is nothing to be patient about.
        """
        info = self._jobs.info(job)
        self._answered = self._answered or info.answered
        if not self._answered:
            raise SchedulerSilentError(f"Slurm does not answer: {info.reason}; {WHEN_IT_IS_BACK}")
        return info

    def heard(self) -> None:
        """Note that Slurm has answered, as sbatch does: a silence after it is waited for."""
        self._answered = True

    def cancel(self, job: str, *, owner: Owner, drain: bool = True) -> None:
        """End the job and wait for its end; one that has ended already is left alone.

        A running job is told to drain its servers (or, without `drain`, to end them at once), and cancelled when
        that takes longer than the grace. Raises LaunchError when the job is not the owner's or Slurm does not say
        whose it is, which then goes on, and when Slurm refuses, or cannot end it.
        """
        before = self.info(job)
        if before.state.over:
            return
        self._refuse_another(before, owner)
        if before.state is not JobState.PENDING and self._told_and_ended(job, drain):
            return
        done = self._ask(cancel_argv(job))
        if done.returncode:
            raise refused("scancel", f"job {job}", done, otherwise="'squeue --me' lists your jobs")
        if not self._ended(job, within=_KILL_WAIT):
            raise _cannot_end(self.info(job))

    def why_foreign(self, job: str, owner: Owner) -> str:
        """Return why the job of this number is not the owner's, or nothing when it is.

        Raises LaunchError when Slurm does not say.
        """
        done = self._ask(show_job_argv(job))
        facts = parse_facts(done.stdout) if done.returncode == 0 else ()
        if not facts:
            said = own_words(done.stderr or done.stdout)
            raise LaunchError(f"Slurm does not report its owner ({said})")
        return next(filter(None, (self._why_not(job, one, owner) for one in facts)), "")

    def _why_not(self, job: str, facts: JobFacts, owner: Owner) -> str:
        if facts.uid != os.getuid():
            return f"it is {facts.name!r} of user {facts.user}"
        if facts.batch:
            ours = same_log(facts.log, owner.log, job) or owner.line in self._ask(script_argv(job)).stdout.splitlines()
        else:
            ours = bool(owner.name) and facts.name == owner.name
        return "" if ours else f"it is another job of yours, {facts.name!r}, which does not belong to this run root"

    def _refuse_another(self, info: JobInfo, owner: Owner) -> None:
        """Raise LaunchError unless Slurm says that the job is the owner's; a number may be another job's by now."""
        try:
            why = self.why_foreign(info.id, owner)
        except LaunchError as error:
            if info.state is JobState.UNKNOWN and info.answered:
                raise _cannot_end(info) from error
            step = next_step(str(error), otherwise=f"see 'scontrol show job {info.id}'")
            raise LaunchError(f"job {info.id} is not cancelled, because {error}; {step}") from error
        if why:
            raise LaunchError(f"job {info.id} is not cancelled, because {why}; see 'scontrol show job {info.id}'")

    def _told_and_ended(self, job: str, drain: bool) -> bool:
        """Tell the batch script; it is not there when the job has just ended, or is none of this user's."""
        done = self._ask(drain_argv(job) if drain else halt_argv(job))
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
        f"see 'scontrol show job {left.id}'; the last resort is 'scancel --signal=KILL --full {left.id}'"
    )


def give_back(job: str) -> str:
    """Requeue a running job of this user, or end it if it must not be requeued; return which, or Slurm's words."""
    if ask(requeue_argv(job)).returncode == 0:
        return "it restarts"
    done = ask(cancel_argv(job))
    return "it is cancelled" if done.returncode == 0 else own_words(done.stderr or done.stdout)


def ask(argv: list[str], *, cluster: str | None = None) -> Completed:
    """Run one of Slurm's commands, with times as seconds since 1970; raises MissingComponent when it is not here.

    It is asked of `cluster`; an empty name is the cluster of this machine, and without one the shell's variables
    choose it. No other variable of the shell's changes what the command does. What it says has no colours.
    """
    program = find_program(argv[0], remedy=REMEDY)
    of = [f"--clusters={cluster}"] if cluster else []
    environment = slurm_environment(os.environ, clusters=cluster is None)
    done = run(
        [program, *of, *argv[1:]], timeout=60, env={**environment, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}
    )
    return replace(done, stdout=plain_text(done.stdout), stderr=plain_text(done.stderr))


def refused(program: str, what: str, done: Completed, *, otherwise: str, section: str = "job") -> LaunchError:
    """Return the error for a command that failed: Slurm's words, and the next step or `otherwise`."""
    said = done.stderr.strip() or done.stdout.strip()
    step = next_step(said, otherwise=otherwise, section=section)
    return LaunchError(f"{program} refused {what} (exit {done.returncode}): {own_words(said)}; {step}")
