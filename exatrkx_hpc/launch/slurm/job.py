"""One job of Slurm: its ID in sbatch's answer, its data from scontrol, and its owner."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

#: Colours and other control sequences of a terminal (ECMA-48), which banners of sites contain.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\r\0]")
#: A line of sbatch with a job ID, with or without --parsable, and with the cluster if one was requested.
_NAMED = re.compile(
    r"(?:sbatch: )?(?:Submitted batch job )?([1-9][0-9]{0,9})(?:;([\w.-]+)| on cluster ([\w.-]+))?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class JobId:
    """A job's number and its cluster; an empty cluster is the default cluster of this machine."""

    number: str
    cluster: str = ""

    def __str__(self) -> str:
        """Return the ID as `sbatch --parsable` writes it."""
        return f"{self.number};{self.cluster}" if self.cluster else self.number


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """A job as `scontrol show job` shows it; `log` is its output file, in which %j may stand for the job's number."""

    uid: int
    user: str
    name: str
    batch: bool
    log: str


@dataclass(frozen=True, kw_only=True)
class Owner:
    """How to recognize a job of this run root: by its output file, a line of its script, or an allocation's name."""

    log: str
    line: str
    name: str = ""


def plain_text(text: str) -> str:
    """Return `text` without terminal control sequences, carriage returns and NUL."""
    return _TERMINAL.sub("", text)


def named_jobs(answer: str) -> tuple[JobId, ...]:
    """Return the jobs in sbatch's answer, each once, in order.

    A line with a job is `N`, `N;cluster`, `Submitted batch job N` or the same with ` on cluster NAME`. Every other line
    is a site's banner.
    """
    found: dict[str, str] = {}
    for line in plain_text(answer).splitlines():
        if match := _NAMED.fullmatch(line.strip()):
            found[match[1]] = match[2] or match[3] or found.get(match[1], "")
    return tuple(JobId(number=number, cluster=cluster) for number, cluster in found.items())


def parse_facts(answer: str) -> tuple[JobFacts, ...]:
    """Parse `scontrol show job`: one job, the tasks of an array, or the parts of a heterogeneous job."""
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
    """Return whether two output files of the job are the same; each is a name from Slurm or an option of sbatch."""
    return bool(one and other) and _filled(one, job) == _filled(other, job)


def _filled(log: str, job: str) -> str:
    # Slurm 22.05 shows %% unchanged and replaces %j; later versions may replace both.
    for pattern, value in (("%j", job), ("%A", job), ("%%", "%")):
        log = log.replace(pattern, value)
    return os.path.realpath(log)
