"""`bench` and `plot`: measure farms of several sizes and draw the figures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc.base.errors import ConfigError, IncompleteRun, MissingComponent
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.bench.places import source_models
from exatrkx_hpc.bench.run import Bench, run_bench
from exatrkx_hpc.cli.command_options import (
    BenchCalls,
    BenchConcurrency,
    BenchDirect,
    BenchDryRun,
    BenchEvents,
    BenchInstances,
    BenchJob,
    BenchMinutes,
    BenchModel,
    BenchMostRepeats,
    BenchOut,
    BenchPlots,
    BenchRecommended,
    BenchRepeats,
    BenchServers,
    BenchVariation,
    BenchWait,
    BenchWindow,
)
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import ConfigFile, Json, Quiet, RunRoot, SiteName, console, resolved, say
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.schedulers import abilities_of
from exatrkx_hpc.measure import perf_analyzer
from exatrkx_hpc.measure.bench_table import Row, measured, nulls, read_table
from exatrkx_hpc.measure.comparison import save_comparison
from exatrkx_hpc.measure.figures import save_figures
from exatrkx_hpc.measure.perf_analyzer import PerfAnalyzer
from exatrkx_hpc.measure.perf_analyzer_install import install
from exatrkx_hpc.measure.recommend import WITHIN, Summary, recommend, summaries
from exatrkx_hpc.measure.scan import Effort, Grid, seconds_left


def bench(
    servers: BenchServers = None,
    instances: BenchInstances = None,
    concurrency: BenchConcurrency = None,
    events: BenchEvents = Path("events"),
    out: BenchOut = Path("bench"),
    window: BenchWindow = None,
    repeats: BenchRepeats = None,
    most_repeats: BenchMostRepeats = None,
    variation: BenchVariation = None,
    minutes: BenchMinutes = None,
    model: BenchModel = None,
    calls: BenchCalls = None,
    direct: BenchDirect = None,
    job: BenchJob = None,
    wait: BenchWait = 600.0,
    plots: BenchPlots = True,
    recommended: BenchRecommended = False,
    dry_run: BenchDryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Measure farms of several sizes with perf_analyzer.

    The scan covers servers x instances x concurrency. Repeat the command to resume a stopped scan. The table
    bench.csv has one row per repetition.

    Example: exatrkx-hpc bench --servers 1,2 --instances 1,2,3 --concurrency 1,2,4,8 -d events -o bench
    """
    if recommended:
        _recommend(read_table(out), as_json=as_json)
        return
    farm = resolved(
        config,
        site=site,
        run_root=run_root,
        bench__window=window,
        bench__repeats=repeats,
        bench__most_repeats=most_repeats,
        bench__variation=variation,
        bench__minutes=minutes,
        bench__model=model,
        bench__calls=calls,
        bench__concurrency=_numbers("--concurrency", concurrency),
    ).farm
    grid = _grid(farm, _numbers("--servers", servers), _numbers("--instances", instances), direct=direct, job=job)
    effort = _effort(farm)
    if dry_run:
        _print_plan(farm, grid, effort, out, job=job, as_json=as_json)
        return
    tell = teller(as_json=as_json, quiet=quiet)
    scan = Bench(
        farm=farm,
        grid=grid,
        effort=effort,
        events=events,
        out=out,
        model=farm.bench.model,
        analyzer=_analyzer(farm, tell),
        wait=wait,
        job=job,
    )
    rows, written = _measure(scan, tell, plots=plots)
    _print(rows, written, as_json=as_json)


def plot(
    tables: Annotated[
        list[Path] | None,
        typer.Argument(help="Folder of a scan or its bench.csv; give several to compare them (default: bench)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder (default: figures/ next to the table).")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Comma-separated list of png, svg and pdf.")] = "png,svg,pdf",
    title: Annotated[str, typer.Option("--title", help="Title of each figure.")] = "",
    as_json: Json = False,
) -> None:
    """Draw the figures of a scan, or compare several scans.

    Compare scans of different models, request modes or machines.

    Example: exatrkx-hpc plot bench -o figures --title "8 cores, reference events"
    """
    first, *others = tables or [Path("bench")]
    folder = out or (first if first.is_dir() else first.parent) / "figures"
    chosen = tuple(dict.fromkeys(one.strip() for one in formats.split(",")))
    if unknown := [one for one in chosen if one not in ("png", "svg", "pdf")]:
        raise ConfigError(f"--format {unknown[0]} is unknown; use png, svg, pdf or a comma-separated list of them")
    scans = {str(one): read_table(one) for one in (first, *others)}
    if others:
        written = save_comparison(scans, folder, formats=chosen, title=title)
    else:
        written = save_figures(scans[str(first)], folder, formats=chosen, title=title)
    if as_json:
        typer.echo(json.dumps([str(path) for path in written], indent=2))
    else:
        for path in written:
            typer.echo(str(path))


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not a list of integers; write it as 1,2,4") from error


def _grid(
    farm: Farm,
    servers: tuple[int, ...] | None,
    instances: tuple[int, ...] | None,
    *,
    direct: bool | None,
    job: str | None,
) -> Grid:
    if job is not None and (servers or instances or direct):
        raise ConfigError("--job measures the running servers; omit --servers, --instances and --direct")
    on_its_own = direct if direct is not None else abilities_of(farm).measures_direct and job is None
    return Grid(
        servers=servers if servers is not None else (farm.job.nodes * farm.server.servers_per_node,),
        instances=instances if instances is not None else (farm.server.instances,),
        concurrency=farm.bench.concurrency,
        direct=on_its_own,
    )


def _effort(farm: Farm) -> Effort:
    section = farm.bench
    return Effort(
        window=section.window,
        repeats=section.repeats,
        most_repeats=max(section.repeats, section.most_repeats),
        variation=section.variation,
        minutes=section.minutes,
    )


def _analyzer(farm: Farm, tell: Tell) -> PerfAnalyzer:
    """Return perf_analyzer; if it is missing, offer on a terminal to install it."""
    folder = FarmDir.of(farm).perf_analyzer
    try:
        return perf_analyzer.find(folder, farm.bench.perf_analyzer)
    except MissingComponent:
        if farm.bench.perf_analyzer or not sys.stdin.isatty():
            raise
        if not typer.confirm(
            f"perf_analyzer is not installed. Install it in {folder} (45 MB)?", default=True, err=True
        ):
            raise
    return install(folder, tell)


def _measure(scan: Bench, tell: Tell, *, plots: bool) -> tuple[Sequence[Row], Sequence[Path]]:
    """Return the rows of the scan and the files of its figures; draw figures of an incomplete scan, too."""
    figures = scan.out / "figures"
    try:
        rows = run_bench(scan, tell=tell)
    except IncompleteRun:
        if plots and (scan.out / "bench.csv").is_file():
            save_figures(read_table(scan.out), figures)
        raise
    return rows, save_figures(rows, figures) if plots else ()


def _print_plan(farm: Farm, grid: Grid, effort: Effort, out: Path, *, job: str | None, as_json: bool) -> None:
    least, most = seconds_left(grid, measured(out), effort)
    placements = grid.placements() if job is None else ()
    if as_json:
        plan = {
            "placements": [{"servers": servers, "instances": instances} for servers, instances in placements],
            "concurrency": list(grid.concurrency),
            "direct": [point.instances for point in grid.direct_points()],
            **dataclasses.asdict(effort),
            "seconds_at_least": round(least),
            "seconds_at_most": round(most),
        }
        typer.echo(json.dumps(plan, indent=2))
        return
    at_once = ", ".join(map(str, grid.concurrency))
    for servers, instances in placements:
        typer.echo(f"{servers} server(s) x {instances} instance(s): concurrency {at_once}")
    if job is not None:
        typer.echo(f"the servers of job {job}: concurrency {at_once}")
    if grid.direct:
        numbers = [point.instances for point in grid.direct_points()]
        typer.echo(f"without a server, {source_models(farm)}: {', '.join(map(str, numbers))} process(es)")
    typer.echo(f"{effort.repeats} to {effort.most_repeats} repetitions of {effort.window:g} s per point")
    typer.echo(f"estimated time left: {least / 60:.0f} to {most / 60:.0f} minutes, limit {effort.minutes:g}")


def _recommend(rows: Sequence[Row], *, as_json: bool) -> None:
    named = recommend(rows)
    typer.echo(json.dumps(named.as_dict(), indent=2) if as_json else str(named))


def _print(rows: Sequence[Row], written: Sequence[Path], *, as_json: bool) -> None:
    known = summaries(rows)
    served = any(one.point.kind == "service" for one in known)
    if as_json:
        found = {
            "points": [nulls({**dataclasses.asdict(one), "error_95": one.error}) for one in known],
            "recommendation": recommend(rows).as_dict() if served else None,
            "figures": [str(path) for path in written],
        }
        typer.echo(json.dumps(found, indent=2))
        return
    console().print(_table(known))
    if served:
        typer.echo(f"smallest within {100 * WITHIN:.0f} % of the best: {recommend(rows)}")
    if written:
        say(f"{len(written)} figure files in {written[0].parent}")


def _table(known: Sequence[Summary]) -> Table:
    table = Table(title="mean over the repetitions; ± is a 95 % interval", title_justify="left")
    for column in ("what", "n", "events/s", "±", "p50 ms", "p95 ms", "p99 ms", "CPU", "GPU"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for one in known:
        numbers = (one.events_per_s, one.error, one.p50_ms, one.p95_ms, one.p99_ms)
        shares = (one.cpu_utilisation, one.gpu_utilisation)
        cells = ["-" if math.isnan(value) else f"{value:.1f}" for value in numbers]
        cells += ["-" if math.isnan(value) else f"{100 * value:.0f} %" for value in shares]
        table.add_row(str(one.point), str(one.repetitions), *cells)
    return table
