"""`demo`: the full pipeline on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import Json, Quiet, console, say
from exatrkx_hpc.demo import DemoResult, DemoSettings, WorkloadName, run_demo
from exatrkx_hpc.tracking.scoring.score import Score
from exatrkx_hpc.work.run.progress import progress_bar
from exatrkx_hpc.work.run.report import render_table
from exatrkx_hpc.work.workloads.traccc import TWIN


def demo(
    workload: Annotated[
        WorkloadName, typer.Option("--workload", help="exatrkx: hits to labels. traccc: cells to fitted tracks.")
    ] = "exatrkx",
    servers: Annotated[int, typer.Option("--servers", min=1, max=16, help="Number of Triton servers.")] = 2,
    events: Annotated[
        int | None, typer.Option("--events", min=1, help="Number of events (default: 100; traccc 20).")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Output folder.")] = Path("demo-results"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the farm running until Ctrl-C.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the full pipeline on this machine: no Slurm, container or GPU.

    Builds the models, generates events with known truth, starts Triton servers behind nginx with Prometheus, sends
    the events with eight workers, scores the tracks and stops everything.

    Example: exatrkx-hpc demo --servers 2 --events 100
    """

    def linger(result: DemoResult) -> None:
        if keep:
            _print(result, as_json=as_json)
            if not as_json:
                model = f" --model {TWIN}" if workload == "traccc" else ""
                say(
                    f"the farm keeps running; try 'exatrkx-hpc run-clients{model} --server {result.endpoint} -d "
                    f"{folder}/events'"
                )
                say("press Ctrl-C to stop it")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)

    settings = DemoSettings(workload=workload, folder=folder, servers=servers, events=events)
    with progress_bar(quiet=quiet) as show:
        result = run_demo(settings, tell=teller(as_json=as_json, quiet=quiet), show=show, linger=linger)
    if not keep:
        _print(result, as_json=as_json)
    result.report.check()


def _print(result: DemoResult, *, as_json: bool) -> None:
    score = result.score
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "endpoint": result.endpoint,
                    "prometheus": result.prometheus,
                    "report": json.loads(result.report.to_json()),
                    "compute_shares": dict(result.shares),
                    "score": {count.name: getattr(score, count.name) for count in dataclasses.fields(Score)},
                    "efficiency": score.efficiency,
                    "fake_rate": score.fake_rate,
                    "folder": str(result.folder),
                },
                indent=2,
            )
        )
        return
    out = console()
    out.print(render_table(result.report))
    shares = Table("stage", "share of compute time")
    for model, share in result.shares.items():
        shares.add_row(model, f"{share:.1%}")
    out.print(shares)
    out.print(f"endpoint          {result.endpoint}")
    out.print(f"track efficiency  {score.efficiency:.3f} ({result.counted})")
    out.print(f"fake rate         {score.fake_rate:.3f}")
    out.print(f"results           {result.folder / 'results'}")
