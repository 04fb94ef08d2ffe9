"""`run-clients` and `metrics`: push events through an endpoint, and see what the servers say of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import ConfigFile, Json, Quiet, RunRoot, SiteName, console, resolved, say
from exatrkx_hpc.cli.wide_command import refuse_mixtures, submit
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import LabelFormat, Mode
from exatrkx_hpc.measure import metrics as measure
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.events import ServerLeftOut
from exatrkx_hpc.measure.record import append_csv
from exatrkx_hpc.work.events.source import EVENT
from exatrkx_hpc.work.run.progress import progress_bar
from exatrkx_hpc.work.run.report import Report, render_table
from exatrkx_hpc.work.run.run import Settings, StoppedRun
from exatrkx_hpc.work.workloads.table import workload_of


def run_clients(
    server: Annotated[
        str | None, typer.Option("--server", "-s", help="The endpoint, HOST:PORT; default: the running farm's.")
    ] = None,
    events: Annotated[
        Path, typer.Option("--events", "-d", help="The folder of events: *.csv, *.npy, *.npz or *.parquet.")
    ] = Path("events"),
    event_column: Annotated[
        str, typer.Option("--event-column", help="The column of Parquet files that names the event of each hit.")
    ] = EVENT,
    labels: Annotated[
        LabelFormat | None, typer.Option("--labels", help="Labels as csv, one file an event, or as parquet.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model to ask; its workload says what events and results are.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", "-n", help="Worker processes, on each node.")] = None,
    in_flight: Annotated[int | None, typer.Option("--in-flight", "-j", help="Concurrent requests per worker.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for results.")] = Path("results"),
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            "-m",
            help="ensemble (one request), stages (one per stage), fused (one model) or direct (no server).",
        ),
    ] = None,
    model_repository: Annotated[
        str | None, typer.Option("--model-repository", help="The folder of the models, for mode direct.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Resume from the ledger in --out, or start anew.")
    ] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try the events in quarantine again.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Do changed events again, forget those that are gone.")
    ] = False,
    times: Annotated[
        bool, typer.Option("--times", help="With --mode stages: write times.csv, the seconds of each stage.")
    ] = False,
    ignore_first: Annotated[
        int, typer.Option("--ignore-first", "-i", help="Leave the first events of this run out of its latency.")
    ] = 0,
    wait: Annotated[float | None, typer.Option("--wait", help="Seconds to wait until the endpoint is ready.")] = None,
    srun: Annotated[
        bool, typer.Option("--srun", help="Spread the workers over the nodes of the allocation that this shell is in.")
    ] = False,
    sbatch: Annotated[bool, typer.Option("--sbatch", help="Submit a job that does so, and print its id.")] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", "-N", min=1, help="How many nodes.")] = None,
    account: Annotated[str | None, typer.Option("--account", "-A", help="With --sbatch: who is charged.")] = None,
    qos: Annotated[str | None, typer.Option("--qos", help="With --sbatch: the quality of service.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", "-p", help="With --sbatch: the partition.")] = None,
    constraint: Annotated[
        str | None, typer.Option("--constraint", "-C", help="With --sbatch: features of the nodes.")
    ] = None,
    time_limit: Annotated[str | None, typer.Option("--time", "-t", help="With --sbatch: the time limit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --sbatch: print the script, submit nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Push every event of a folder through the endpoint, each once; one label file for each event.

    A second run with the same -o does what is left.

    With --srun or --sbatch -n workers on each of -N nodes do it, each node some shards of the events with ledgers of
    their own; what a lost node leaves is done by the others, or by the next run with the same -o.

    Example: exatrkx-hpc run-clients -n 8 -j 4 -d events -o results
    """
    job = {"-N": nodes, "-A": account, "--qos": qos, "-p": partition, "-C": constraint, "-t": time_limit}
    refuse_mixtures(srun=srun, sbatch=sbatch, of_a_job=job, dry_run=dry_run, ignore_first=ignore_first)
    found = resolved(
        config,
        site=site,
        run_root=run_root,
        clients__nodes=nodes,
        clients__account=account,
        clients__qos=qos,
        clients__partition=partition,
        clients__constraint=constraint,
        clients__time=time_limit,
        clients__workers=workers,
        clients__in_flight=in_flight,
        clients__wait=wait,
        clients__model=model,
        clients__mode=mode,
        clients__labels=labels,
        server__model_repository=model_repository or None,
    )
    settings = dataclasses.replace(
        _settings(found.farm, server, events, out),
        fresh=not resume,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        event_column=event_column,
        times=times,
        ignore_first=ignore_first,
    )
    if sbatch:
        submit(found, settings, dry_run=dry_run, as_json=as_json)
        return
    do = partial(story.run_clients_on_nodes, nodes=nodes) if srun else story.run_clients
    _run(settings, partial(do, farm=found.farm), quiet=quiet, as_json=as_json)


def _settings(farm: Farm, server: str | None, events: Path, out: Path) -> Settings:
    clients, direct = farm.clients, farm.clients.mode == "direct"
    if direct and server:
        raise ConfigError("--server and mode direct exclude each other: direct asks no server; leave one of them out")
    return Settings(
        server="" if direct else server or story.endpoint_record(farm).grpc,
        events=events,
        out=out,
        workers=clients.workers,
        in_flight=clients.in_flight,
        request_timeout=clients.request_timeout,
        patience=clients.patience,
        deadline=clients.wait,
        workload=workload_of(clients.model, default=clients.workload, folder=clients.workloads).name,
        workloads=clients.workloads,
        model=clients.model,
        mode=clients.mode,
        result_format=clients.labels,
        repository=Path(farm.server.model_repository),
    )


def _run(settings: Settings, do: Callable[..., Report], *, quiet: bool, as_json: bool) -> None:
    """Let `do` do the run and print its report, also that of a run that was stopped."""
    try:
        with progress_bar(quiet=quiet) as show:
            report = do(settings, show, tell=teller(as_json=as_json, quiet=quiet))
    except StoppedRun as stopped:
        typer.echo(stopped.report.to_json(), nl=False) if as_json else console().print(render_table(stopped.report))
        raise
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif not quiet:
        console().print(render_table(report))
        page = settings.report.with_suffix(".html")
        say(f"{settings.kind.folder} in {settings.folder}, report in {settings.report} and {page}")
    report.check()


def metrics(
    server: Annotated[
        list[str] | None,
        typer.Option("--server", "-s", help="A server's metrics address, HOST:8002; may be given several times."),
    ] = None,
    watch: Annotated[float | None, typer.Option("--watch", "-w", min=0.1, help="Refresh every N seconds.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Append the rows to this CSV file, too.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Print each model's requests and mean times: request, queue, input, compute, output.

    With --watch each table but the first covers the time since the one before. Without --server, all ready
    servers of the running farm are summed, with --watch those that are ready each time. What the columns do not
    count is in docs/reference/metrics.md.

    Example: exatrkx-hpc metrics --server 127.0.0.2:8002 --watch 5 --csv times.csv
    """
    tell = teller(as_json=as_json)
    farm = None if server else resolved(config, site=site, run_root=run_root).farm
    earlier: dict[str, Snapshot] = {}
    unheard: set[str] = set()
    while True:
        servers = _servers_of(farm) if farm is not None else dict.fromkeys(server or (), "")
        found, silent = measure.fetch_fleet(servers, instances=servers)
        if silent and watch is None:
            raise silent[0]  # totals without one server would pass for those of all
        for error in silent:
            tell(ServerLeftOut(reason=str(error)))
        late = [snapshot for snapshot in found if snapshot.url in unheard]
        for snapshot in late:
            tell(ServerLeftOut(reason=f"{snapshot.url} answers for the first time; it counts from now on"))
        times = measure.fleet_times((one for one in found if one not in late), earlier.values())
        if csv is not None:
            append_csv(csv, times, at=time.time())
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(row) for row in times]))
        else:
            console().print(measure.render_table(times))
        if watch is None:
            return
        # What a server counted while it was silent belongs to the round in which it answers again, if it is known
        # what it had counted before.
        earlier |= {snapshot.url: snapshot for snapshot in found}
        unheard = {measure.metrics_url(one) for one in servers} - earlier.keys()
        time.sleep(watch)


def _servers_of(farm: Farm) -> dict[str, str]:
    """Return the metrics address of each ready server of the farm, with the name of its process, '' if unknown.

    Raises EndpointError when there is none.
    """
    record = story.endpoint_record(farm)
    if not record.metrics:
        raise EndpointError(
            f"no server of job {record.job} is ready; see what 'exatrkx-hpc monitor' says, or name one with --server"
        )
    return {address: record.instances.get(name, "") for name, address in record.metrics.items()}
