"""The job that a command without a job ID means; a person at a terminal is asked if there are several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.cli.options import say
from exatrkx_hpc.config.schema import Farm

JobId = Annotated[
    str | None,
    typer.Argument(help="Job ID, as printed by deploy; latest: the newest job (default: the only live job)."),
]
JobOption = Annotated[
    str | None,
    typer.Option("--job", help="Job whose endpoint is used; latest: the newest job (default: the only endpoint)."),
]


def chosen_job(farm: Farm, job: str | None, *, tell: Tell) -> story.Job:
    """Return the job with this ID; without an ID, the only live job, or the newest one if no job lives.

    Asks if several jobs live and this program has a terminal. Raises LaunchError if it has none.
    """
    if job is not None:
        return story.find_job(farm, job, tell=tell)
    found = story.candidates(farm, tell=tell)
    if len(found) > 1 and sys.stdin.isatty() and sys.stderr.isatty():
        return _asked(found)
    return story.only_job(farm, found)


def _asked(found: Sequence[tuple[story.Job, JobInfo]]) -> story.Job:
    say(f"{len(found)} jobs live:")
    for job, info in found:
        say(f"  {job.id}  {info.state.value}  {','.join(info.nodes) or info.reason}")
    by_id = {job.id: job for job, _ in found}
    while True:
        answer = str(typer.prompt("job ID", err=True)).strip()
        if answer in by_id:
            return by_id[answer]
        say(f"{answer!r} is none of them; enter one of {', '.join(by_id)}, or press Ctrl-C")
