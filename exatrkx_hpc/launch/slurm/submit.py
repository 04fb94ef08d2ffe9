"""Submit a script with sbatch; the result is a job, a refusal, or an unclear answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import TIMED_OUT, Completed
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.slurm.environment import names_cluster
from exatrkx_hpc.launch.slurm.job import JobId, named_jobs, parse_facts, same_log
from exatrkx_hpc.launch.slurm.refusals import may_run, own_words, start_estimate
from exatrkx_hpc.launch.slurm.scheduler import ask, refused, show_job_argv

#: The maximum number of characters of an unreadable answer that are shown.
_MOST_WORDS = 200


def sbatch_argv(script: Path, *, test_only: bool = False) -> list[str]:
    """Return the command that submits `script` and prints the job's ID, or only checks `script` (`test_only`)."""
    return ["sbatch", "--test-only" if test_only else "--parsable", str(script)]


def would_start(script: Path, *, options: Sequence[str] = ()) -> str:
    """Return Slurm's estimate of the start of `script`; `options` are its further #SBATCH options.

    Raises LaunchError if Slurm would refuse the script.
    """
    done = _sbatch(script, test_only=True, clusters=not any(map(names_cluster, options)))
    if done.returncode:
        raise _refused_script(script, done)
    return start_estimate(done.stderr) or start_estimate(done.stdout) or own_words(done.stderr or done.stdout)


def submit(script: Path, *, name: str, log: str, section: str = "job", options: Sequence[str] = ()) -> JobId:
    """Submit `script` and return its job; raises LaunchError if Slurm refuses it.

    `name` is the job's name, and `log` its output file, in which %j is the job's number. `section` is the section of
    farm.toml with the job's account, time and so on. `options` are the further #SBATCH options of the script. Raises
    JobMayRunError if it is unclear whether the job exists; then a user must check before a new submission.
    """
    done = _sbatch(script, clusters=not any(map(names_cluster, options)))
    named = named_jobs(done.stdout) or named_jobs(done.stderr)
    if done.returncode == 0 and len(named) == 1 and (_alone(done.stdout) or _writes(named[0], log) is not False):
        return named[0]
    ours = [job for job in named if _writes(job, log)]
    if len(ours) == 1:
        return ours[0]
    if done.returncode not in (0, TIMED_OUT) and not may_run(done.stderr + done.stdout):
        raise _refused_script(script, done, section=section)
    raise _unclear(done, named, name, taken_over=section == "job")


def _alone(answer: str) -> bool:
    """Return whether an answer is a single line, so that its number is not part of a banner."""
    return len(answer.split("\n")) <= 2 and bool(answer.strip())


def _sbatch(script: Path, *, test_only: bool = False, clusters: bool = True) -> Completed:
    """Run sbatch; with `clusters`, the shell's variables choose the cluster, because the farm does not."""
    return ask(sbatch_argv(script, test_only=test_only), cluster=None if clusters else "")


def _writes(job: JobId, log: str) -> bool | None:
    """Return whether the job is this user's and writes to `log`; None if Slurm does not report it."""
    done = ask(show_job_argv(job.number), cluster=job.cluster or None)
    facts = parse_facts(done.stdout) if done.returncode == 0 else ()
    if not facts:
        return None
    return any(one.uid == os.getuid() and same_log(one.log, log, job.number) for one in facts)


def _unclear(done: Completed, named: Sequence[JobId], name: str, *, taken_over: bool) -> JobMayRunError:
    said = own_words(done.stdout if done.returncode == 0 else done.stderr or done.stdout)
    said = said if len(said) <= _MOST_WORDS else f"{said[:_MOST_WORDS]}…"
    which = f"does not identify the job ({', '.join(map(str, named))})" if named else f"contains no job ID: {said!r}"
    take_over = "take it over with 'exatrkx-hpc monitor JOBID', " if taken_over else ""
    return JobMayRunError(
        f"sbatch's answer {which}; the job may be queued or running: find it with 'squeue --me --name={name}', "
        f"{take_over}or end it with 'scancel JOBID'; check before you submit again"
    )


def _refused_script(script: Path, done: Completed, *, section: str = "job") -> LaunchError:
    return refused("sbatch", str(script), done, otherwise=f"check [{section}] in farm.toml", section=section)
