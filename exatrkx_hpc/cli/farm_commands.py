"""`deploy`, `monitor`, `stop`: the life cycle of a job."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.errors import ConfigError, LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.signals import deferred_signals, unwound
from exatrkx_hpc.cli.choice import JobId, chosen_job
from exatrkx_hpc.cli.command_options import (
    DeployAccount,
    DeployBeside,
    DeployDryRun,
    DeployEvents,
    DeployInteractive,
    DeployMinReady,
    DeployNodes,
    DeployPartition,
    DeployQos,
    DeployTime,
    DeployTrustRunRoot,
    DeployWait,
)
from exatrkx_hpc.cli.interactive import refuse_mixture, run_here, what_would_run, within_allocation
from exatrkx_hpc.cli.news import not_waiting, teller
from exatrkx_hpc.cli.options import ConfigFile, EngineName, Json, JsonLines, RunRoot, SiteName, answer, resolved, say
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.events import MonitorLeft, MonitorStopped
from exatrkx_hpc.launch.in_job import monitor_words
from exatrkx_hpc.launch.words import Word


def deploy(
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    nodes: DeployNodes = None,
    account: DeployAccount = None,
    qos: DeployQos = None,
    partition: DeployPartition = None,
    time: DeployTime = None,
    engine: EngineName = None,
    wait: DeployWait = None,
    min_ready: DeployMinReady = None,
    interactive: DeployInteractive = False,
    dry_run: DeployDryRun = False,
    trust_run_root: DeployTrustRunRoot = False,
    beside: DeployBeside = None,
    events: DeployEvents = Path("events"),
    as_json: Json = False,
) -> None:
    """Submit the farm's job and print its ID.

    With --interactive, run deploy and monitor in one: start the servers in the allocation of this shell, or in a
    new allocation from salloc, which ends with the servers.

    With --with bench, run the benchmark inside the job once its servers are ready, at the concurrencies of [bench],
    then end the job. The table and the figures are in RUN_ROOT/JOBID/bench.

    With --with monitor, run the monitor, and so the endpoint, on the job's first node, as long as the servers run.

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
        job__min_ready=min_ready,
        server__engine=engine,
    )
    if interactive:
        refuse_mixture({"--wait": wait is not None, "--json": as_json, "--with": beside is not None})
        found = within_allocation(found, nodes_given=nodes is not None)
    farm, sources = found.farm, found.sources
    command: Sequence[Word] = ()
    companion: Sequence[Word] = ()
    if beside == "bench":
        from exatrkx_hpc.bench.in_job import bench_command

        command = bench_command(farm, events, sources=sources)
    elif beside == "monitor":
        companion = monitor_words(farm, sources=sources)
    if dry_run:
        if interactive:
            say(f"at once: {what_would_run(farm)}")
        typer.echo(story.script(farm, sources=sources, beside=command, companion=companion), nl=False)
        return
    if interactive:
        run_here(farm, sources, trust_run_root=trust_run_root)
        return
    _submit(farm, sources, (command, companion), wait=wait, trust_run_root=trust_run_root, as_json=as_json)


def _submit(
    farm: Farm,
    sources: Mapping[str, str],
    commands: tuple[Sequence[Word], Sequence[Word]],
    *,
    wait: float | None,
    trust_run_root: bool,
    as_json: bool,
) -> None:
    """Submit the job and print its ID; with `wait`, wait up to that many seconds for its servers.

    `commands` run on its first node: the command beside the servers, and their companion; empty for none.
    """
    tell = teller(as_json=as_json)
    beside, companion = commands
    with deferred_signals():  # a job that exists is named, also after Ctrl-C
        job = story.deploy(
            farm, tell=tell, sources=sources, trust_run_root=trust_run_root, beside=beside, companion=companion
        )
        told = {"job": job.id, "cluster": job.cluster, "run_dir": str(job.run_dir)}
        typer.echo(json.dumps(told) if as_json else job.id)
    if wait is not None:
        story.wait_ready(job, timeout=wait, tell=tell)
    if as_json:
        return  # the next line is for people
    after = f"next: exatrkx-hpc monitor {job.id}"
    if beside:
        after = f"the figures will be in {job.run_dir.bench}"
    elif companion:
        after = f"its endpoint opens with the job; see 'exatrkx-hpc status {job.id}' and {job.run_dir.monitor_log}"
    say(f"run directory {job.run_dir}; {after}")


def monitor(
    job: JobId = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; survives this terminal. Prints how to stop it.")
    ] = False,
    leave: Annotated[
        bool, typer.Option("--leave", help="On Ctrl-C or SIGTERM, leave nginx serving for the next monitor.")
    ] = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: JsonLines = False,
) -> None:
    """Run the endpoint of a job until the job ends or Ctrl-C.

    Updates nginx and Prometheus when servers start, fail or end. Prints one line with time and number of ready
    servers for each change.

    Ctrl-C and SIGTERM stop the endpoint; with --leave, and when the terminal is closed, nginx keeps serving with its
    last servers. A new monitor of the job on the same machine takes over the nginx that runs.

    Example: exatrkx-hpc monitor 4242
    """
    found = chosen_job(resolved(config, site=site, run_root=run_root).farm, job, tell=teller(as_json=as_json))
    if detach:
        options = {"--config": config, "--site": site, "--run-root": run_root}
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        switches = [*(["--leave"] if leave else []), *(["--json"] if as_json else [])]
        background = story.detach(found, ("monitor", found.id, *given, *switches))
        typer.echo(json.dumps(background.as_dict()) if as_json else str(background))
        return
    with not_waiting(teller(as_json=as_json, results=True)) as tell:
        _monitor(found, leave=leave, tell=tell)


def _monitor(found: story.Job, *, leave: bool, tell: Tell) -> None:
    """Run the endpoint of a job in this process; raises LaunchError if the job ends other than wanted."""
    watch = story.watch(found, tell=tell)
    view, serves = None, False
    try:
        watch.start()
        serves = True
        view = watch.wait()
    except KeyboardInterrupt:
        pass
    except SystemExit:
        leave = leave or unwound() == 128 + signal.SIGHUP  # a closed terminal is no decision to stop
        raise
    except Exception:
        leave = serves  # what a failed monitor stopped is stopped, and what it left serves on
        raise
    finally:
        with deferred_signals():
            if leave:
                watch.leave()
            else:
                watch.stop()
    if view is None:  # Ctrl-C; only now, so that no news of the monitor's last tick follows
        tell(MonitorLeft(job=found.id, endpoint=watch.endpoint) if leave else MonitorStopped(job=found.id))
    elif view.job not in (JobState.COMPLETED, JobState.CANCELLED):
        raise LaunchError(f"{view.sentence}; the logs are in {found.run_dir.logs}")


def stop(
    job: JobId = None,
    server: Annotated[str, typer.Option("--server", help="Drain and end this server only, as named by status.")] = "",
    restart: Annotated[bool, typer.Option("--restart", help="With --server: start the server again.")] = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: Json = False,
) -> None:
    """Drain the servers of a job, then end the job; or one server, with --server.

    Prints every 10 s what it waits for. A job that has ended stays as it is.

    Example: exatrkx-hpc stop 4242
    """
    if restart and not server:
        raise ConfigError("--restart needs --server NAME; 'exatrkx-hpc status' lists the servers")
    tell = teller(as_json=as_json)
    found = chosen_job(resolved(config, site=site, run_root=run_root).farm, job, tell=tell)
    if server:
        story.ask_server(found, server, restart=restart)
        line = f"job {found.id}: {server} drains, then {'starts again' if restart else 'ends'}"
        answer(line, as_json=as_json, job=found.id, server=server, restart=restart)
        return
    now = found.scheduler.info(found.id)
    ended = now.state.over
    if not (ended or as_json):
        say(f"job {found.id}: {'cancelling' if now.state is JobState.PENDING else 'draining, then ending'}")
    story.stop(found, tell=tell)  # also ends what an ended job has left
    if not ended:
        now = found.scheduler.info(found.id)
    line = f"job {found.id} has ended: {now.state.value}" if ended else f"job {found.id}: {now.state.value}"
    if ended and now.reason:
        line = f"{line}, {now.reason}"
    answer(line, as_json=as_json, job=found.id, state=now.state.value, reason=now.reason, had_ended=ended)
