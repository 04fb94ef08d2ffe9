"""Submit a script with sbatch; the result is a job, a refusal, or an unclear answer."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.slurm.environment import names_cluster
from exatrkx_hpc.launch.slurm.job import JobId, named_jobs, parse_facts, same_log
from exatrkx_hpc.launch.slurm.refusals import own_words, start_estimate, unclear
from exatrkx_hpc.launch.slurm.scheduler import ask, refused, show_job_argv
from exatrkx_hpc.launch.slurm.submissions import Submission, sought

#: The maximum number of characters of an unreadable answer that are shown.
_MOST_WORDS = 200
#: In seconds. After an unclear answer, Slurm is asked for the job this long.
_PATIENCE = 30.0
_PAUSE = 2.0


def sbatch_argv(script: Path, *, comment: str) -> list[str]:
    """Return the command that submits `script` with a comment and prints the job's ID."""
    return ["sbatch", "--parsable", f"--comment={comment}", str(script)]


def check_argv(script: Path) -> list[str]:
    """Return the command that only checks `script`."""
    return ["sbatch", "--test-only", str(script)]


def would_start(script: Path, *, options: Sequence[str] = ()) -> str:
    """Return Slurm's estimate of the start of `script`; `options` are its further #SBATCH options.

    Raises LaunchError if Slurm would refuse the script.
    """
    done = _sbatch(check_argv(script), options)
    if done.returncode:
        raise _refused_script(script, done)
    return start_estimate(done.stderr) or start_estimate(done.stdout) or own_words(done.stderr or done.stdout)


def submit(
    submission: Submission,
    *,
    log: str,
    comment: str = "",
    section: str = "job",
    options: Sequence[str] = (),
    patience: float | None = None,
) -> JobId:
    """Submit the script of `submission` and return its job; raises LaunchError if Slurm refuses it.

    `log` is the job's output file, in which %j is the job's number. `comment` is that of the user. `section` is the
    section of farm.toml with the job's account, time and so on. `options` are the further #SBATCH options of the
    script. After an unclear answer, Slurm is asked for the job for `patience` seconds, by default 30. Raises
    JobMayRunError if it remains unclear whether the job exists; then the submission must stay on disk.
    """
    script = Path(submission.script)
    done = _sbatch(sbatch_argv(script, comment=submission.commented(comment)), options)
    named = named_jobs(done.stdout) or named_jobs(done.stderr)
    if done.returncode == 0 and len(named) == 1 and (_alone(done.stdout) or _writes(named[0], log) is not False):
        return named[0]
    ours = [job for job in named if _writes(job, log)]
    if len(ours) == 1:
        return ours[0]
    if not unclear(done.returncode, done.stderr + done.stdout):
        raise _refused_script(script, done, section=section)
    if (found := _found(submission, _PATIENCE if patience is None else patience)) is not None:
        return found
    raise _unclear(done, named, submission.name, taken_over=section == "job")


def _found(submission: Submission, patience: float) -> JobId | None:
    """Ask Slurm for the job, repeatedly for `patience` seconds; None if it does not report exactly one."""
    until = time.monotonic() + patience
    while True:
        jobs = sought(submission).jobs
        if jobs:
            return jobs[0] if len(jobs) == 1 else None
        if time.monotonic() >= until:
            return None
        time.sleep(_PAUSE)


def _alone(answer: str) -> bool:
    """Return whether an answer is a single line, so that its number is not part of a banner."""
    return len(answer.split("\n")) <= 2 and bool(answer.strip())


def _sbatch(argv: list[str], options: Sequence[str]) -> Completed:
    """Run sbatch; the shell's variables choose the cluster unless one of `options` does."""
    return ask(argv, cluster="" if any(map(names_cluster, options)) else None)


def _writes(job: JobId, log: str) -> bool | None:
    """Return whether the job is this user's and writes to `log`; None if Slurm does not report it."""
    try:
        done = ask(show_job_argv(job.number), cluster=job.cluster or None)
    except MissingComponent:  # not an error of sbatch, after which no job exists
        return None
    facts = parse_facts(done.stdout) if done.returncode == 0 else ()
    if not facts:
        return None
    return any(one.uid == os.getuid() and same_log(one.log, log, job.number) for one in facts)


def _unclear(done: Completed, named: Sequence[JobId], name: str, *, taken_over: bool) -> JobMayRunError:
    said = own_words(done.stdout if done.returncode == 0 else done.stderr or done.stdout)
    said = said if len(said) <= _MOST_WORDS else f"{said[:_MOST_WORDS]}…"
    which = f"does not identify the job ({', '.join(map(str, named))})" if named else f"contains no job ID: {said!r}"
    take_over = "the next 'exatrkx-hpc status' takes it over when Slurm reports it, " if taken_over else ""
    return JobMayRunError(
        f"sbatch's answer {which}; the job may be queued or running: {take_over}'squeue --me --name={name}' lists it "
        "and 'scancel JOBID' ends it; check before you submit again"
    )


def _refused_script(script: Path, done: Completed, *, section: str = "job") -> LaunchError:
    return refused("sbatch", str(script), done, otherwise=f"check [{section}] in farm.toml", section=section)
