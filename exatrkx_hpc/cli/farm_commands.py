"""`deploy`, `monitor`, `stop`: a job's life."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.signals import deferred_signals
from exatrkx_hpc.bench.in_job import bench_command
from exatrkx_hpc.cli.interactive import refuse_mixture, run_here, what_would_run, within_allocation
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import ConfigFile, EngineName, Json, JsonLines, RunRoot, SiteName, resolved, say
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.events import MonitorStopped
from exatrkx_hpc.launch.run_dir import LATEST
from exatrkx_hpc.launch.words import Word

JobId = Annotated[str, typer.Argument(help="The job's id, as deploy printed it; default: the job used last.")]


def deploy(
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    nodes: Annotated[int | None, typer.Option("--nodes", "-N", help="How many nodes.")] = None,
    account: Annotated[str | None, typer.Option("--account", "-A", help="The account to charge.")] = None,
    qos: Annotated[str | None, typer.Option("--qos", help="The quality of service.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", "-p", help="The partition.")] = None,
    time: Annotated[str | None, typer.Option("--time", "-t", help="The time limit.")] = None,
    engine: EngineName = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=1, help="Wait until every server is ready, at most so many seconds.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Run the farm from this terminal until Ctrl-C, with its endpoint.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
    trust_run_root: Annotated[
        bool, typer.Option("--trust-run-root", help="Take a run root that looks as if no node could see it.")
    ] = False,
    beside: Annotated[
        Literal["bench"] | None,
        typer.Option("--with", help="Measure the servers in the job itself, which then ends."),
    ] = None,
    events: Annotated[Path, typer.Option("--events", "-d", help="With bench: what it asks with.")] = Path("events"),
    as_json: Json = False,
) -> None:
    """Submit the farm's job and print its id.

    With --interactive it is deploy and monitor in one: the servers start at once in the allocation that this
    shell is in, or in one that salloc gets and that ends with them.

    With --with bench the job measures itself once its servers are ready, over the requests in flight that
    [bench] names, and ends: RUN_ROOT/JOBID/bench holds the table and the figures.

    Example: exatrkx-hpc deploy -N 4
    """
    found = resolved(
        config,
        site=site,
        run_root=run_root,
        job__nodes=nodes,
        job__account=account,
        job__qos=qos,
        job__partition=partition,
        job__time=time,
        server__engine=engine,
    )
    if interactive:
        refuse_mixture({"--wait": wait is not None, "--json": as_json, "--with": beside is not None})
        found = within_allocation(found, nodes_given=nodes is not None)
    farm, sources = found.farm, found.sources
    command = bench_command(farm, events, sources=sources) if beside else ()
    if dry_run:
        if interactive:
            say(f"at once: {what_would_run(farm)}")
        typer.echo(story.script(farm, sources=sources, beside=command), nl=False)
        return
    if interactive:
        run_here(farm, sources, trust_run_root=trust_run_root)
        return
    _submit(farm, sources, command, wait=wait, trust_run_root=trust_run_root, as_json=as_json)


def _submit(
    farm: Farm,
    sources: Mapping[str, str],
    beside: Sequence[Word],
    *,
    wait: float | None,
    trust_run_root: bool,
    as_json: bool,
) -> None:
    """Submit the job and print its id; `wait` is how long to wait for its servers, if at all."""
    tell = teller(as_json=as_json)
    job = story.deploy(farm, tell=tell, sources=sources, trust_run_root=trust_run_root, beside=beside)
    told = {"job": job.id, "cluster": job.cluster, "run_dir": str(job.run_dir)}
    typer.echo(json.dumps(told) if as_json else job.id)
    if wait is not None:
        story.wait_ready(job, timeout=wait, tell=tell)
    if as_json:
        return  # programs have read all that there is
    after = f"figures will be in {job.run_dir.bench}" if beside else f"next: exatrkx-hpc monitor {job.id}"
    say(f"run directory {job.run_dir}; {after}")


def monitor(
    job: JobId = LATEST,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: JsonLines = False,
) -> None:
    """Keep one endpoint for the servers of a job, until the job is over or Ctrl-C.

    Balancer and metrics store follow the servers as they come and go; each change is one line with its time, and
    with the number of ready servers at its end.

    Example: exatrkx-hpc monitor 4242
    """
    found = story.find_job(resolved(config, site=site, run_root=run_root).farm, job)
    tell = teller(as_json=as_json, results=True)
    watch = story.watch(found, tell=tell)
    try:
        watch.start()
        view = watch.wait()
    except KeyboardInterrupt:
        tell(MonitorStopped(job=found.id))
        return
    finally:
        with deferred_signals():
            watch.stop()
    if view.job not in (JobState.COMPLETED, JobState.CANCELLED):
        raise LaunchError(f"{view.sentence}; the logs are in {found.run_dir.logs}")


def stop(job: JobId = LATEST, config: ConfigFile = None, site: SiteName = None, run_root: RunRoot = None) -> None:
    """Let the servers of a job leave the balancer and finish, then end the job.

    Example: exatrkx-hpc stop 4242
    """
    found = story.find_job(resolved(config, site=site, run_root=run_root).farm, job)
    say(f"job {found.id}: draining, then cancelling")
    story.stop(found)
    typer.echo(f"job {found.id}: {found.scheduler.info(found.id).state.value}")
