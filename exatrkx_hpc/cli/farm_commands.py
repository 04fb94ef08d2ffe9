"""`deploy`, `monitor`, `stop`: a job's life."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.cli.options import ConfigFile, Json, RunRoot, SiteName, resolved, say
from exatrkx_hpc.errors import LaunchError
from exatrkx_hpc.fleet.endpoint_file import LATEST
from exatrkx_hpc.launch.scheduler import JobState
from exatrkx_hpc.signals import deferred_signals

JobId = Annotated[str, typer.Argument(help="The job's id, as deploy printed it; default: the job used last.")]


def deploy(
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    nodes: Annotated[int | None, typer.Option("--nodes", "-N", help="How many nodes.")] = None,
    account: Annotated[str | None, typer.Option("--account", "-A", help="The account to charge.")] = None,
    qos: Annotated[str | None, typer.Option("--qos", help="The quality of service.")] = None,
    time: Annotated[str | None, typer.Option("--time", "-t", help="The time limit.")] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=1, help="Wait until every server is ready, at most so many seconds.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Submit the farm's job and print its id.

    Example: exatrkx-hpc deploy -N 4
    """
    farm = resolved(
        config,
        site=site,
        run_root=run_root,
        job__nodes=nodes,
        job__account=account,
        job__qos=qos,
        job__time=time,
    ).farm
    if dry_run:
        typer.echo(story.script(farm), nl=False)
        return
    job = story.deploy(farm, tell=say)
    typer.echo(json.dumps({"job": job.id, "run_dir": str(job.run_dir)}) if as_json else job.id)
    if wait is not None:
        story.wait_ready(job, timeout=wait, tell=say)
    say(f"run directory {job.run_dir}; next: exatrkx-hpc monitor {job.id}")


def monitor(job: JobId = LATEST, config: ConfigFile = None, site: SiteName = None, run_root: RunRoot = None) -> None:
    """Keep one endpoint for the servers of a job, until the job is over or Ctrl-C.

    Balancer and metrics store follow the servers as they come and go; each change is one line, with the
    number of ready servers at its end.

    Example: exatrkx-hpc monitor 4242
    """
    found = story.find_job(resolved(config, site=site, run_root=run_root).farm, job)
    watch = story.watch(found, tell=typer.echo)
    try:
        watch.start()
        typer.echo(f"endpoint: {watch.endpoint}")
        view = watch.wait()
    except KeyboardInterrupt:
        typer.echo(f"monitor ends; the servers of job {found.id} go on, and 'exatrkx-hpc stop {found.id}' ends them")
        return
    finally:
        with deferred_signals():
            watch.stop()
    if view.job not in (JobState.COMPLETED, JobState.CANCELLED):
        raise LaunchError(f"job {found.id} is {view.job.value}; the logs are in {found.run_dir / 'logs'}")


def stop(job: JobId = LATEST, config: ConfigFile = None, site: SiteName = None, run_root: RunRoot = None) -> None:
    """Let the servers of a job leave the balancer and finish, then end the job.

    Example: exatrkx-hpc stop 4242
    """
    found = story.find_job(resolved(config, site=site, run_root=run_root).farm, job)
    say(f"job {found.id}: draining, then cancelling")
    story.stop(found)
    typer.echo(f"job {found.id}: {found.scheduler.state(found.id).value}")
