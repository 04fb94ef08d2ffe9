"""One job of Slurm: how sbatch names it, how scontrol shows it, and whether it is ours."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

#: Colours and other commands for a terminal (ECMA-48), which banners of sites have.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\r\0]")
#: A line of sbatch that names a job, with --parsable and without it, and with the cluster if one was asked for.
_NAMED = re.compile(
    r"(?:sbatch: )?(?:Submitted batch job )?([1-9][0-9]{0,9})(?:;([\w.-]+)| on cluster ([\w.-]+))?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class JobId:
    """A job's number, and its cluster; without one the job is of the cluster that this machine asks by itself."""

    number: str
    cluster: str = ""

    def __str__(self) -> str:
        """Return it as `sbatch --parsable` writes it."""
        return f"{self.number};{self.cluster}" if self.cluster else self.number


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What `scontrol show job` says of a job; `log` is the file of its output, in which %j is the job's number."""

    uid: int
    user: str
    name: str
    batch: bool
    log: str


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What a job of ours is known by: its output's file, a line of its script, or, of an allocation, its name."""

    log: str
    line: str
    name: str = ""


def plain_text(text: str) -> str:
    """Return `text` without colours, carriage returns and NUL."""
    return _TERMINAL.sub("", text)


def named_jobs(answer: str) -> tuple[JobId, ...]:
    """Return the jobs that whole lines of sbatch's answer name, each once, in their order.

    Such a line is `N`, `N;cluster`, `Submitted batch job N` or the same with ` on cluster NAME`. Every other line is
    a site's banner.
    """
    found: dict[str, str] = {}
    for line in plain_text(answer).splitlines():
        if match := _NAMED.fullmatch(line.strip()):
            found[match[1]] = match[2] or match[3] or found.get(match[1], "")
    return tuple(JobId(number=number, cluster=cluster) for number, cluster in found.items())


def parse_facts(answer: str) -> tuple[JobFacts, ...]:
    """Return what `scontrol show job` printed: one job, the tasks of an array, or the parts of a heterogeneous job."""
    return tuple(facts for block in re.split(r"(?m)^(?=JobId=)", answer)[1:] if (facts := _facts(block)) is not None)


def _facts(block: str) -> JobFacts | None:
    user = re.search(r"^\s+UserId=(.*?)\(([0-9]+)\)", block, re.MULTILINE)
    name = re.search(r"\bJobName=(.*)$", block, re.MULTILINE)
    batch = re.search(r"^ +.*\bBatchFlag=([0-9])", block, re.MULTILINE)
    log = re.search(r"^\s+StdOut=(.*)$", block, re.MULTILINE)
    if user is None or name is None or batch is None:
        return None
    return JobFacts(
        uid=int(user[2]), user=user[1], name=name[1], batch=batch[1] != "0", log=log[1] if log is not None else ""
    )


def same_log(one: str, other: str, job: str) -> bool:
    """Return whether two output files of the job, each as Slurm or an option of sbatch names it, are the same."""
    return bool(one and other) and _filled(one, job) == _filled(other, job)


def _filled(log: str, job: str) -> str:
    # Slurm 22.05 shows %% as it was written, and %j filled in; later ones may fill in both.
    for pattern, value in (("%j", job), ("%A", job), ("%%", "%")):
        log = log.replace(pattern, value)
    return os.path.realpath(log)
