"""Slurm as the scheduler: query a job, cancel a job.

`scancel --batch --signal=USR2` drains a job: the signal reaches only the batch script, which passes the request on to
the servers. The script also drains on SIGTERM, which Slurm sends before the time limit; with two signals, the script
knows who asked. A plain `scancel` also signals processes of the steps; with proctrack/linuxproc, where Slurm follows
processes by their parents, it signals every process, including Triton. So a plain `scancel` is the last resort.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
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

#: Next step if one of Slurm's commands is missing.
REMEDY = "run this on a machine with Slurm's commands, or set cluster.scheduler to 'local' to use this machine only"
#: Next step if Slurm does not answer.
WHEN_IT_IS_BACK = "retry when 'scontrol ping' succeeds"
#: In seconds. Slurm kills the remaining processes of a cancelled job after KillWait, 30 s by default.
_KILL_WAIT = 60.0


def drain_argv(job: str) -> list[str]:
    """Return the command that makes the batch script of a running job drain its servers."""
    return ["scancel", "--batch", "--signal=USR2", job]


def halt_argv(job: str) -> list[str]:
    """Return the command that makes the batch script of a running job end its servers without a drain."""
    return ["scancel", "--batch", "--signal=USR1", job]


def cancel_argv(job: str) -> list[str]:
    """Return the command that ends a job in any state: SIGTERM, later SIGKILL, to its processes."""
    return ["scancel", job]


def requeue_argv(job: str) -> list[str]:
    """Return the command that requeues a running job, if it was submitted as requeueable."""
    return ["scontrol", "requeue", job]


def show_job_argv(job: str) -> list[str]:
    """Return the command that shows a job, including its owner."""
    return ["scontrol", "show", "job", job]


def script_argv(job: str) -> list[str]:
    """Return the command that prints the script of a job; Slurm shows it only to the job's owner."""
    return ["scontrol", "write", "batch_script", job, "-"]


class Slurm:
    """Slurm as the scheduler of one cluster."""

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
        """Use the cluster named `cluster`, for '' the cluster of this machine, for None the one that the shell chooses.

        A job that drains is cancelled after `grace` seconds. `jobs` answers queries of jobs. `cancel` measures time
        with `clock` and waits with `sleep`.
        """
        self._grace = grace
        self._cluster = chosen_cluster(os.environ) if cluster is None else cluster
        self._ask = partial(ask, cluster=self._cluster)
        # JSON of 22.05 ignores --clusters, and pyslurm does not support it.
        self._jobs = jobs or SlurmJobs(self._ask, lines_only=bool(self._cluster))
        self._clock = clock
        self._sleep = sleep
        self._answered = False

    def info(self, job: str) -> JobInfo:
        """Return the job's current state; UNKNOWN with a reason if Slurm does not report it.

        Raises SchedulerSilentError if Slurm has not answered since this object was created.
        """
        return self.infos([job])[job]

    def infos(self, jobs: Sequence[str]) -> dict[str, JobInfo]:
        """Return the current states of `jobs` from one query; see `info`."""
        found = self._jobs.infos(jobs)
        self._answered = self._answered or any(info.answered for info in found.values())
        if found and not self._answered:
            why = next(iter(found.values())).reason
            raise SchedulerSilentError(f"Slurm does not answer: {why}; {WHEN_IT_IS_BACK}")
        return found

    def look_again(self) -> None:
        """Query Slurm at the next `info`, however young the last answer is."""
        self._jobs.forget()

    def heard(self) -> None:
        """Note that Slurm has answered, for example to sbatch; later silence then raises no SchedulerSilentError."""
        self._answered = True

    def cancel(
        self, job: str, *, owner: Owner, drain: bool = True, enough: Callable[[JobInfo], bool] = lambda info: False
    ) -> None:
        """End the job and wait for its end; does nothing if the job has already ended.

        A running job first drains its servers or, without `drain`, ends them at once. It is cancelled if it does not
        end within the grace time or until `enough` returns true, or cannot be signalled. Raises LaunchError if the job
        does not belong to `owner` or Slurm does not report its owner, and then leaves the job running. Raises
        LaunchError if Slurm refuses or cannot end the job.
        """
        before = self.info(job)
        if before.state.over:
            return
        self._refuse_another(before, owner)
        if before.state is not JobState.PENDING and self._told_and_ended(job, drain, enough):
            return
        done = self._ask(cancel_argv(job))
        if done.returncode:
            raise refused("scancel", f"job {job}", done, otherwise="'squeue --me' lists your jobs")
        if not self._ended(job, within=_KILL_WAIT):
            raise _cannot_end(self.info(job))

    def why_foreign(self, job: str, owner: Owner) -> str:
        """Return why the job does not belong to `owner`; '' if it does.

        Raises LaunchError if Slurm does not report the job.
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
        """Raise LaunchError unless the job belongs to `owner`; Slurm may have given its number to another job."""
        try:
            why = self.why_foreign(info.id, owner)
        except LaunchError as error:
            if info.state is JobState.UNKNOWN and info.answered:
                raise _cannot_end(info) from error
            step = next_step(str(error), otherwise=f"see 'scontrol show job {info.id}'")
            raise LaunchError(f"job {info.id} is not cancelled, because {error}; {step}") from error
        if why:
            raise LaunchError(f"job {info.id} is not cancelled, because {why}; see 'scontrol show job {info.id}'")

    def _told_and_ended(self, job: str, drain: bool, enough: Callable[[JobInfo], bool]) -> bool:
        """Signal the batch script and return whether the job ended; false if the script cannot be signalled."""
        done = self._ask(drain_argv(job) if drain else halt_argv(job))
        return done.returncode == 0 and self._ended(job, within=self._grace, enough=enough)

    def _ended(self, job: str, *, within: float, enough: Callable[[JobInfo], bool] = lambda info: False) -> bool:
        until = self._clock() + within
        while True:
            self._jobs.forget()
            now = self.info(job)
            if now.state.over:
                return True
            if self._clock() >= until or enough(now):
                return False
            self._sleep(2.0)


def _cannot_end(left: JobInfo) -> LaunchError:
    """Return the error for a job that does not end: unknown to Slurm (scancel is silent then), or on a stuck node."""
    if left.state is JobState.UNKNOWN:
        return LaunchError(f"job {left.id}: {left.reason}; 'squeue --me --states=all' lists your jobs")
    return LaunchError(
        f"job {left.id} is still {left.state.value} {_KILL_WAIT:g} s after scancel; "
        f"see 'scontrol show job {left.id}'; the last resort is 'scancel --signal=KILL --full {left.id}'"
    )


def give_back(job: str) -> str:
    """Requeue a running job of this user, or cancel it if that fails; return the outcome or Slurm's error."""
    if ask(requeue_argv(job)).returncode == 0:
        return "it restarts"
    done = ask(cancel_argv(job))
    return "it is cancelled" if done.returncode == 0 else own_words(done.stderr or done.stdout)


def ask(argv: list[str], *, cluster: str | None = None) -> Completed:
    """Run one of Slurm's commands, with times as seconds since 1970; raises MissingComponent if it is missing.

    The command goes to `cluster`; '' is the cluster of this machine, and for None the shell's variables choose it. No
    other variable of the shell changes what the command does. The output has no terminal control sequences.
    """
    program = find_program(argv[0], remedy=REMEDY)
    of = [f"--clusters={cluster}"] if cluster else []
    environment = slurm_environment(os.environ, clusters=cluster is None)
    variables = {**environment, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}
    # Ctrl-C must not end a command halfway: this program decides when to stop.
    done = run([program, *of, *argv[1:]], timeout=60, env=variables, apart=True)
    return replace(done, stdout=plain_text(done.stdout), stderr=plain_text(done.stderr))


def refused(program: str, what: str, done: Completed, *, otherwise: str, section: str = "job") -> LaunchError:
    """Return the error for a command that failed: Slurm's message, and the next step or `otherwise`."""
    said = done.stderr.strip() or done.stdout.strip()
    step = next_step(said, otherwise=otherwise, section=section)
    return LaunchError(f"{program} refused {what} (exit {done.returncode}): {own_words(said)}; {step}")
