"""Submissions on disk: one file from before sbatch starts until the job has its run directory.

The job's comment has the submission's token. So if a submission is interrupted at any point, a later command finds the
job in Slurm's queue or accounting, or knows that no job exists.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import ExatrkxError, LaunchError, MissingComponent
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.process import runs_with
from exatrkx_hpc.base.process_id import ProcessId, boot_id, host_name, process_id
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.slurm.job import JobId
from exatrkx_hpc.launch.slurm.refusals import own_words
from exatrkx_hpc.launch.slurm.scheduler import ask

#: The first part of the word in a job's comment; the second part is the token.
_WORD = "exatrkx-hpc:"
#: In seconds. Slurm's controller may accept a job this long after sbatch has ended.
_LATE = 30.0
#: In seconds. sbatch on another machine has given up after this time.
_LATE_ELSEWHERE = 300.0
#: In seconds. A deploy knows its job, or that it does not, after this time.
_LONGEST = 120.0
#: What sacct says at a site without accounting. There, the queue alone answers: it keeps an ended job for some minutes
#: (MinJobAge).
_NO_ACCOUNTING = "accounting storage is disabled"
#: The tokens of the submissions that this process makes at the moment.
_begun: set[str] = set()


class Submission(BaseModel):
    """One call of sbatch or salloc, and the process that makes it.

    `clusters` may have the job; '' is the cluster of this machine. `began` is in seconds since 1970. `plan`
    is the farm's plan as JSON, empty for a workers' job.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    script: str
    name: str
    clusters: tuple[str, ...] = ("",)
    plan: str = ""
    interactive: bool = False
    began: float
    host: str
    boot: str
    pid: int
    started: int

    @property
    def word(self) -> str:
        """The word of the job's comment that identifies the job."""
        return f"{_WORD}{self.token}"

    @property
    def when(self) -> str:
        """The local time of the submission."""
        return time.strftime("%F %T", time.localtime(self.began))

    def commented(self, comment: str) -> str:
        """Return the job's comment: that of the user, then the word."""
        return f"{comment} {self.word}".lstrip()

    def in_progress(self) -> bool:
        """Return whether the process that submits, or its sbatch, lives; elsewhere, whether it may live by its age."""
        if self.host != host_name():
            return time.time() < self.began + _LONGEST
        maker = ProcessId(host=self.host, boot=self.boot, pid=self.pid, started=self.started)
        if not maker.here:
            return False
        submits = self.token in _begun if self.pid == os.getpid() else maker.runs
        return submits or runs_with(self.word)

    def may_come(self) -> bool:
        """Return whether Slurm may still accept the job, although it does not know the job yet."""
        here = self.host == host_name()
        return self.in_progress() or time.time() < self.began + (_LATE if here else _LATE_ELSEWHERE)


class Submissions:
    """The unfinished submissions in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self._folder = folder

    @contextlib.contextmanager
    def begun(
        self, script: Path, *, name: str, clusters: Sequence[str], plan: str = "", interactive: bool = False
    ) -> Iterator[Submission]:
        """Write a new submission of `script`, readable by its owner only; this process makes it inside the block.

        The file stays until `end`, or until the block ends with an error that says that no job exists: any ExatrkxError
        but JobMayRunError. Raises LaunchError if the file cannot be written.
        """
        me = process_id(os.getpid())
        made = Submission(
            token=secrets.token_hex(8),
            script=str(script),
            name=name,
            clusters=tuple(clusters),
            plan=plan,
            interactive=interactive,
            began=time.time(),
            host=host_name(),
            boot=boot_id(),
            pid=os.getpid(),
            started=0 if me is None else me.started,
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.file(made), made.model_dump_json(indent=2) + "\n", mode=0o600)
        except OSError as error:
            raise LaunchError(
                f"cannot write to {self._folder} ({error.strerror}); check permissions and free space"
            ) from error
        _begun.add(made.token)
        try:
            yield made
        except JobMayRunError:
            raise
        except ExatrkxError:  # no job exists; after any other exception, one may
            self.end(made)
            raise
        finally:
            _begun.discard(made.token)

    def file(self, submission: Submission) -> Path:
        """Return the file of a submission."""
        return self._folder / f"{submission.token}.json"

    def end(self, submission: Submission) -> None:
        """Remove the file of a submission: its job has its run directory, or no job exists."""
        with contextlib.suppress(OSError):
            self.file(submission).unlink(missing_ok=True)
            self._folder.rmdir()

    def all(self) -> tuple[Submission, ...]:
        """Return every submission in the folder, oldest first; files that are no submission are left out.

        Raises OSError if a file cannot be read: its job may exist.
        """
        found = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError, ValidationError):  # ended meanwhile
                found.append(Submission.model_validate_json(path.read_bytes()))
        return tuple(sorted(found, key=lambda one: one.began))


@dataclass(frozen=True, kw_only=True)
class Sought:
    """The jobs with a token; `silent` says why Slurm did not answer, so that there may be others, or is empty."""

    jobs: tuple[JobId, ...] = ()
    silent: str = ""


def squeue_comments_argv() -> list[str]:
    """Return the command that lists this user's jobs with their comments."""
    return ["squeue", "--me", "--states=all", "--noheader", "--format=%A|%k"]


def sacct_comments_argv(since: float) -> list[str]:
    """Return the command that lists the jobs since that time, with their comments and the commands that made them.

    A site's accounting may not store comments, but it stores the command line of sbatch, which has the comment, too.
    """
    start = datetime.fromtimestamp(since).strftime("%Y-%m-%dT%H:%M:%S")
    user = f"--user={os.getuid()}"
    return ["sacct", "--noheader", "--parsable2", "--allocations", user, f"--starttime={start}", *_COMMENT_FIELDS]


_COMMENT_FIELDS = ("--format=JobIDRaw,Comment,SubmitLine",)


def jobs_with(word: str, answer: str, *, cluster: str = "") -> tuple[JobId, ...]:
    """Return the jobs in the answer of one of these commands whose line has `word`; each once."""
    found: dict[str, JobId] = {}
    for line in answer.splitlines():
        number, bar, rest = line.partition("|")
        if bar and number.isdigit() and word in rest:
            found[number] = JobId(number=number, cluster=cluster)
    return tuple(found.values())


def sought(submission: Submission) -> Sought:
    """Ask the queue, then the accounting, of each cluster that may have the job of a submission."""
    found = [_sought(submission, cluster) for cluster in submission.clusters]
    silent = next((one.silent for one in found if one.silent), "")
    return Sought(jobs=tuple(job for one in found for job in one.jobs), silent=silent)


def _sought(submission: Submission, cluster: str) -> Sought:
    # One day of margin: the clocks of machines, and daylight saving time.
    for argv in (squeue_comments_argv(), sacct_comments_argv(submission.began - 86400)):
        try:
            done = ask(argv, cluster=cluster)
        except MissingComponent as error:  # a machine without Slurm, or without processes left, knows of no job
            return Sought(silent=str(error).partition("; ")[0])
        if jobs := jobs_with(submission.word, done.stdout, cluster=cluster):
            return Sought(jobs=jobs)
        if done.returncode and _NO_ACCOUNTING not in done.stderr:
            return Sought(silent=f"{argv[0]}: {own_words(done.stderr or done.stdout)}")
    return Sought()
