"""`models build`, `models check`, `models pack-env`, `models train`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc.assets import asset
from exatrkx_hpc.cli.options import Json, Quiet
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.errors import MissingComponent, ModelError, OutputError
from exatrkx_hpc.models.build import build as build_repository
from exatrkx_hpc.models.check import check as check_repository
from exatrkx_hpc.models.pack_env import NEEDED, pack_environment
from exatrkx_hpc.tracking.constants import DEFAULT_SEED, NETWORK_NAMES

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


@models_app.command("pack-env", epilog="Example: exatrkx-hpc models pack-env --out environment --package torch")
def pack_env(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write, or an archive NAME.tar.gz.")],
    python: Annotated[
        Path | None, typer.Option("--python", help="The Python whose packages are taken; default: this one.")
    ] = None,
    package: Annotated[list[str] | None, typer.Option("--package", help="A further package, such as torch.")] = None,
) -> None:
    """Pack Python, numpy and scipy into an environment that the models can use inside a container."""
    packed = pack_environment(out, python=python or Path(sys.executable), packages=(*NEEDED, *(package or ())))
    typer.echo(f"{out}: Python {packed.python}, {packed.libc} or newer, {len(packed.packages)} package(s)")


@models_app.command(epilog="Example: exatrkx-hpc models train --out models --seed 1")
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The repository that gets the weights.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of data and weights; default: that of the shipped ones.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train the three networks on synthetic events and write their weights; minutes on two cores."""
    try:
        from exatrkx_hpc.tracking import training
    except ImportError as error:
        raise MissingComponent(
            f"models train needs PyTorch and SciPy ({error}); pip install 'exatrkx-hpc[train]'"
        ) from error
    _refuse_unwritable(out)  # now, not after minutes of training
    with stages(quiet=quiet) as show:
        networks = training.train(seed=DEFAULT_SEED if seed is None else seed, on_progress=show)
    try:
        training.save(networks, out)
    except (OSError, RuntimeError) as error:  # PyTorch says RuntimeError for a full disk
        raise _unwritable(out, error) from error
    typer.echo(f"weights written to {out}, sha256 of their values {training.hash_state(networks)}")


def _refuse_unwritable(out: Path) -> None:
    try:
        for name in NETWORK_NAMES:
            folder = out / name / "1"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError | RuntimeError) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
    return OutputError(f"the weights cannot be written to {out}: {reason}; make room, or choose another --out")
