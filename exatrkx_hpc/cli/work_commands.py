"""`run-clients` and `metrics`: send events to an endpoint, and print the statistics of its servers."""

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
from exatrkx_hpc.base.credentials import CredentialFiles
from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.cli.choice import JobOption
from exatrkx_hpc.cli.command_options import (
    RunAcceptChanges,
    RunAcceptModelChange,
    RunAccount,
    RunConstraint,
    RunDryRun,
    RunEventColumn,
    RunEvents,
    RunExpect,
    RunIgnoreFirst,
    RunInFlight,
    RunLabels,
    RunMode,
    RunModel,
    RunModelRepository,
    RunNodes,
    RunOut,
    RunPartition,
    RunQos,
    RunResume,
    RunRetryFailed,
    RunSbatch,
    RunServer,
    RunSrun,
    RunTimeLimit,
    RunTimes,
    RunWait,
    RunWorkers,
)
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import (
    Certificate,
    ConfigFile,
    Json,
    Quiet,
    RunRoot,
    SiteName,
    TokenFile,
    console,
    resolved,
    say,
)
from exatrkx_hpc.cli.wide_command import refuse_mixtures, submit
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.credentials import EndpointAccess
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.measure import metrics as measure
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.events import ServerLeftOut
from exatrkx_hpc.measure.record import append_csv
from exatrkx_hpc.work.events.source import EVENT
from exatrkx_hpc.work.inference.address import require_grpc
from exatrkx_hpc.work.run.progress import progress_bar
from exatrkx_hpc.work.run.report import Report, render_table
from exatrkx_hpc.work.run.run import Settings, StoppedRun
from exatrkx_hpc.work.workloads.table import workload_of


def run_clients(
    server: RunServer = None,
    token_file: TokenFile = None,
    certificate: Certificate = None,
    farm_job: JobOption = None,
    events: RunEvents = Path("events"),
    event_column: RunEventColumn = EVENT,
    labels: RunLabels = None,
    model: RunModel = None,
    workers: RunWorkers = None,
    in_flight: RunInFlight = None,
    out: RunOut = Path("results"),
    mode: RunMode = None,
    model_repository: RunModelRepository = None,
    resume: RunResume = True,
    retry_failed: RunRetryFailed = False,
    accept_changes: RunAcceptChanges = False,
    accept_model_change: RunAcceptModelChange = False,
    expect: RunExpect = None,
    times: RunTimes = False,
    ignore_first: RunIgnoreFirst = 0,
    wait: RunWait = None,
    srun: RunSrun = False,
    sbatch: RunSbatch = False,
    nodes: RunNodes = None,
    account: RunAccount = None,
    qos: RunQos = None,
    partition: RunPartition = None,
    constraint: RunConstraint = None,
    time_limit: RunTimeLimit = None,
    dry_run: RunDryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Send every event of a folder to the endpoint; each event gets exactly one result.

    Writes the results to -o. A second run with the same -o resumes the first.

    With --srun or --sbatch, run -n workers on each of -N nodes. The events are divided into shards, each with its own
    ledger. If a node is lost, the other nodes, or the next run with the same -o, take over its shards.

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
        _settings(
            found.farm,
            _endpoint(
                found.farm,
                server,
                farm_job,
                teller(as_json=as_json, quiet=quiet),
                given=CredentialFiles(token=token_file, certificate=certificate),
            ),
            events,
            out,
        ),
        fresh=not resume,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        accept_model_change=accept_model_change,
        expect=expect,
        event_column=event_column,
        times=times,
        ignore_first=ignore_first,
    )
    if sbatch:
        submit(found, settings, dry_run=dry_run, as_json=as_json)
        return
    do = partial(story.run_clients_on_nodes, nodes=nodes) if srun else story.run_clients
    _run(settings, partial(do, farm=found.farm), quiet=quiet, as_json=as_json)


def _endpoint(farm: Farm, server: str | None, job: str | None, tell: Tell, *, given: CredentialFiles) -> EndpointAccess:
    """Return the way to the endpoint that the flags mean, without an address for mode direct; wait for a monitor."""
    flags = [flag for flag, value in (("--server", server), ("--job", job)) if value]
    if farm.clients.mode == "direct":
        if flags:
            raise ConfigError(f"{flags[0]} and mode direct are mutually exclusive; omit one of them")
        return EndpointAccess(address="", files=given)
    if len(flags) > 1:
        raise ConfigError("--server and --job are mutually exclusive; omit one of them")
    access = story.endpoint_access(farm, server, given=given, job=job, wait=farm.clients.wait, tell=tell)
    if server and access.files.certificate is None:  # a port with TLS answers no plain question
        require_grpc(server, meant=story.addresses_of(farm))
    return access


def _settings(farm: Farm, endpoint: EndpointAccess, events: Path, out: Path) -> Settings:
    clients = farm.clients
    return Settings(
        server=endpoint.address,
        identity=endpoint.identity,
        token_file=endpoint.files.token,
        certificate=endpoint.files.certificate,
        reports=FarmDir.of(farm).job(endpoint.job).reports if endpoint.job else None,
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
    """Run `do` and print its report, even if the run was stopped."""
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
        typer.Option(
            "--server", "-s", help="Metrics address, HOST:8002; repeatable (default: all servers of the farm)."
        ),
    ] = None,
    job: JobOption = None,
    watch: Annotated[float | None, typer.Option("--watch", "-w", min=0.1, help="Refresh every N seconds.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also append the rows to this CSV file.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Print request counts and mean times per model.

    The times are request, queue, input, compute and output. With --watch, each table after the first covers the
    time since the one before. Without --server, sums over all ready servers of the running farm, with --watch
    over those that are ready each time. docs/reference/metrics.md
    explains what the columns do not count.

    Example: exatrkx-hpc metrics --server 127.0.0.2:8002 --watch 5 --csv times.csv
    """
    if server and job:
        raise ConfigError("--server and --job are mutually exclusive; omit one of them")
    tell = teller(as_json=as_json)
    farm = None if server else resolved(config, site=site, run_root=run_root).farm
    earlier: dict[str, Snapshot] = {}
    unheard: set[str] = set()
    heard = tell
    while True:
        servers = _servers_of(farm, job, heard) if farm is not None else dict.fromkeys(server or (), "")
        heard = untold  # once is enough
        found, silent = measure.fetch_fleet(servers, instances=servers)
        if silent and watch is None:
            raise silent[0]  # totals without one server would look complete
        for error in silent:
            tell(ServerLeftOut(reason=str(error)))
        late = [snapshot for snapshot in found if snapshot.url in unheard]
        for snapshot in late:
            tell(ServerLeftOut(reason=f"{snapshot.url} answers for the first time; counted from now on"))
        times = measure.fleet_times((one for one in found if one not in late), earlier.values())
        if csv is not None:
            append_csv(csv, times, at=time.time())
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(row) for row in times]))
        else:
            console().print(measure.render_table(times))
        if watch is None:
            return
        # Counts of a silent server belong to the round in which it answers again, if its earlier counts are known.
        earlier |= {snapshot.url: snapshot for snapshot in found}
        unheard = {measure.metrics_url(one) for one in servers} - earlier.keys()
        time.sleep(watch)


def _servers_of(farm: Farm, job: str | None, tell: Tell) -> dict[str, str]:
    """Return the metrics address of each ready server of the farm, with the name of its process, '' if unknown.

    Raises EndpointError when no server is ready or no monitor runs.
    """
    record = story.endpoint_record(farm, job, tell=tell)
    if not record.metrics:
        raise EndpointError(
            f"no server of job {record.job} is ready; see the output of 'exatrkx-hpc monitor', or set --server"
        )
    return {address: record.instances.get(name, "") for name, address in record.metrics.items()}
