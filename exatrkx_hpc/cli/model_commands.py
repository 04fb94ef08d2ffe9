"""`models build`, `models check`, `models train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc.assets import asset
from exatrkx_hpc.cli.options import Json, Quiet
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.errors import ModelError, OutputError
from exatrkx_hpc.models.build import build as build_repository
from exatrkx_hpc.models.check import check as check_repository

models_app = typer.Typer(help="Build, check and train model repositories.", no_args_is_help=True)

Source = Annotated[
    Path | None, typer.Option("--source", help="The repository to start from; default: the shipped one.")
]


@models_app.command(epilog="Example: exatrkx-hpc models build --device gpu --instances 2 --out models")
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; replaced if it was built before.")],
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="What the networks run on.")] = "gpu",
    instances: Annotated[int, typer.Option(help="Instances of each model in a server.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each network instance on a CPU.")] = 1,
    environment: Annotated[Path | None, typer.Option(help="Python environment for the Python models.")] = None,
    source: Source = None,
) -> None:
    """Write a copy of the model repository, specialised for a device and a number of instances."""
    built = build_repository(
        source or asset("model_repos/exatrkx"),
        out,
        device=device,
        instances=instances,
        threads=threads,
        environment=environment,
    )
    typer.echo(f"{built.path}: {len(built.models)} models for {device}, {instances} instance(s) each")


@models_app.command(epilog="Example: exatrkx-hpc models check models")
def check(repository: Annotated[Path, typer.Argument(help="The repository's folder.")], as_json: Json = False) -> None:
    """Find what Triton would refuse, or would silently get wrong."""
    findings = check_repository(repository)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.model}: {finding.what}; {finding.remedy}")
    if findings:
        raise ModelError(f"{repository} has {len(findings)} fault(s)")
    if not as_json:
        typer.echo(f"{repository}: no fault found")


@models_app.command(epilog="Example: exatrkx-hpc models train --out models --seed 1")
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The repository that gets the weights.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of data and weights; default: that of the shipped ones.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train the three networks on synthetic events and write their weights; minutes on two cores."""
    from exatrkx_hpc.tracking import training
    from exatrkx_hpc.tracking.constants import DEFAULT_SEED

    with stages(quiet=quiet) as show:
        networks = training.train(seed=DEFAULT_SEED if seed is None else seed, on_progress=show)
    try:
        training.save(networks, out)
    except OSError as error:
        raise OutputError(f"the weights cannot be written to {out}: {error.strerror}") from error
    typer.echo(f"weights written to {out}, sha256 of their values {training.hash_state(networks)}")
