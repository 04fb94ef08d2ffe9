"""`models build`, `check`, `install`, `test`, `pack-env` and `train`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.credentials import CredentialFiles
from exatrkx_hpc.base.errors import InputError, MissingComponent, ModelError, OutputError
from exatrkx_hpc.cli.event_commands import EventSource, event_source
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import (
    Certificate,
    ConfigFile,
    Json,
    Quiet,
    RunRoot,
    SiteName,
    TokenFile,
    answer,
    console,
    resolved,
    say,
)
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.launch.plan import container_places
from exatrkx_hpc.models.build import build as build_repository
from exatrkx_hpc.models.check import check as check_repository
from exatrkx_hpc.models.install import Installed
from exatrkx_hpc.models.install import install as install_networks
from exatrkx_hpc.models.pack_env import NEEDED, pack_environment
from exatrkx_hpc.models.trial import Sample
from exatrkx_hpc.tracking.constants import DEFAULT_SEED, DEFAULT_TRAINING, NETWORK_NAMES, QUICK_TRAINING
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.work.events.source import Reader, find_events
from exatrkx_hpc.work.inference.address import require_grpc
from exatrkx_hpc.work.inference.probe import ask_model, reply_table, save_outputs
from exatrkx_hpc.work.workloads.exatrkx import HITS
from exatrkx_hpc.work.workloads.traccc import TWIN

models_app = typer.Typer(help="Build, check, fill, test and train model repositories.", no_args_is_help=True)

#: `install` tests networks on this many events of a folder, with at least this many hits, among this many first events.
_SAMPLES, _LEAST_HITS, _MOST_TRIED = 3, 50, 100

Source = Annotated[
    Path | None, typer.Option("--source", help="Model repository to copy from (default: the shipped one).")
]


@models_app.command(epilog="Example: exatrkx-hpc models build --device gpu --instances 2 --out models")
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; an earlier build there is replaced.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model to build, such as traccc-cpu; repeatable (default: those of ExaTrkX)."),
    ] = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None, typer.Option(help="Device of the models (default: gpu; cpu for traccc-cpu).")
    ] = None,
    contract: Annotated[
        Literal["current", "raw"], typer.Option(help="Input tensors of traccc-cpu: current, or raw (the raw buffer).")
    ] = "current",
    instances: Annotated[int, typer.Option(help="Instances of each model per server.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs per server; CPU stages get their instances once per GPU.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads per network instance.")] = 1,
    environment: Annotated[
        Path | None, typer.Option(help="Python environment of the Python models (default: Triton's own).")
    ] = None,
    fused: Annotated[
        bool, typer.Option(help="Include exatrkx_fused. It needs PyTorch in the environment, and CuPy on a GPU.")
    ] = True,
    names: Annotated[
        list[str] | None,
        typer.Option("--as", help="Additional name for the fused model, such as exatrkxgpu; repeatable."),
    ] = None,
    source: Source = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Build a model repository for a device and a number of instances."""
    chosen = device or ("cpu" if only and set(only) == {TWIN} else "gpu")
    built = build_repository(
        source or shipped_repository(only or ()),
        out,
        device=chosen,
        instances=instances,
        gpus=gpus,
        threads=threads,
        environment=environment,
        fused=fused,
        names=names or (),
        only=only or (),
        contract=contract,
        places=container_places(resolved(config).farm),
    )
    line = f"{built.path}: {len(built.models)} model(s) for {chosen}, {instances} instance(s) each"
    answer(line, as_json=as_json, repository=built.path, models=list(built.models), device=chosen, instances=instances)


def shipped_repository(models: Sequence[str]) -> Path:
    """Return the shipped repository with these models; that of ExaTrkX for none, or if no other has the first one."""
    folders = (asset(f"model_repos/{name}") for name in ("traccc", "echo"))
    found = (folder for folder in folders if models and (folder / models[0]).is_dir())
    return next(found, asset("model_repos/exatrkx"))


@models_app.command(epilog="Example: exatrkx-hpc models check models")
def check(
    repository: Annotated[Path, typer.Argument(help="Model repository to check.")],
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Check a model repository for errors, including those that Triton does not report.

    If the farm uses a container, paths in the configurations are resolved through server.mounts.
    """
    findings = check_repository(repository, places=container_places(resolved(config).farm))
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.model}: {finding.what}; {finding.remedy}")
    if findings:
        raise ModelError(f"{repository} has {len(findings)} error(s)")
    if not as_json:
        typer.echo(f"{repository}: no errors found")


@models_app.command(
    epilog="Example: exatrkx-hpc models install --embed embed.pt --filter filter.pt --gnn gnn.pt --out site-models"
)
def install(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Model repository to install into; created from --source if it does not exist."
        ),
    ],
    embed: Annotated[
        Path | None, typer.Option("--embed", help="TorchScript or ONNX file of the embedding: hits [N,3] to [N,D].")
    ] = None,
    edge_filter: Annotated[
        Path | None,
        typer.Option("--filter", help="TorchScript or ONNX file of the filter: hits [N,3], edges [2,E] to logits."),
    ] = None,
    gnn: Annotated[
        Path | None,
        typer.Option("--gnn", help="TorchScript or ONNX file of the GNN: hits [N,3], edges [2,E] to logits."),
    ] = None,
    radius: Annotated[float | None, typer.Option(help="Radius of the neighbour search in the embedding space.")] = None,
    max_neighbours: Annotated[int | None, typer.Option(help="Maximum number of neighbours per hit.")] = None,
    filter_cut: Annotated[float | None, typer.Option(help="Probability above which an edge passes the filter.")] = None,
    gnn_cut: Annotated[float | None, typer.Option(help="Probability above which an edge joins its two hits.")] = None,
    scores: Annotated[
        Literal["logits", "probabilities"] | None, typer.Option(help="Output of filter and gnn (default: logits).")
    ] = None,
    edge_order: Annotated[
        Literal["number", "radius", "both"] | None,
        typer.Option(
            help="First hit of an edge: the higher number (default), the inner hit (radius), or both directions."
        ),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", "-d", help="Events of your detector for the checks (default: simulated events)."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="JSON file with the features of a hit: names, scales and ranges.")
    ] = None,
    source: Source = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Install your own networks and constants into a repository, after checks on sample events.

    Either everything is installed or nothing.
    """
    given = {"embed": embed, "filter": edge_filter, "gnn": gnn}
    constants = {
        "radius": radius,
        "max_neighbours": max_neighbours,
        "filter_cut": filter_cut,
        "gnn_cut": gnn_cut,
        "scores": scores,
        "edge_order": edge_order,
    }
    installed = install_networks(
        out,
        source=source or asset("model_repos/exatrkx"),
        weights={name: path for name, path in given.items() if path is not None},
        constants={name: value for name, value in constants.items() if value is not None},
        samples=_samples(events) if events is not None else None,
        features=features,
        places=container_places(resolved(config).farm),
    )
    _print_installed(installed, as_json=as_json)


def _print_installed(installed: Installed, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(installed), indent=2, default=str))
        return
    for warning in installed.warnings:
        say(f"warning: {warning}")
    for network in installed.networks:
        sizes = ", ".join(map(str, network.dims))
        typer.echo(f"{network.model}: {network.file}, output [{sizes}], sha256 {network.sha256}")
    for name, value in installed.constants.items():
        typer.echo(f"{name}: {value if isinstance(value, str) else f'{value:g}'}")
    typer.echo(f"installed in {installed.path}")


def _samples(folder: Path) -> tuple[Sample, ...]:
    """Return the first events of a folder that have enough hits for a check."""
    reader = Reader()
    found: list[Sample] = []
    try:
        for event in itertools.islice(find_events(folder), _MOST_TRIED):
            hits = reader.read(event).tensors[HITS]
            if len(hits) >= _LEAST_HITS and len(found) < _SAMPLES:
                found.append(Sample(hits=hits))
    finally:
        reader.close()
    if not found:
        raise InputError(
            f"{folder} has no event with {_LEAST_HITS} hits or more to check the networks with; choose another --events"
        )
    return tuple(found)


@models_app.command(epilog="Example: exatrkx-hpc models test exatrkx events/evt_000000.csv --server 127.0.0.1:9191")
def test(
    model: Annotated[str, typer.Argument(help="Model name, such as exatrkx.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT.csv", help="One CSV file per model input, in the order of the inputs, or NAME=FILE."
        ),
    ],
    server: Annotated[
        str | None, typer.Option("--server", "-s", help="Endpoint, HOST:PORT (default: that of the running farm).")
    ] = None,
    token_file: TokenFile = None,
    certificate: Certificate = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the outputs as CSV files, or one .csv file for a single output."),
    ] = None,
    version: Annotated[str, typer.Option("--model-version", help="Model version (default: the newest).")] = "",
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Send tensors from CSV files to one model and show its outputs."""
    farm = resolved(config, site=site, run_root=run_root).farm
    given = CredentialFiles(token=token_file, certificate=certificate)
    access = story.endpoint_access(farm, server, given=given, tell=teller(as_json=as_json))
    if server and access.files.certificate is None:  # a port with TLS answers no plain question
        require_grpc(server, meant=story.addresses_of(farm))
    reply = ask_model(
        access.address,
        model,
        inputs,
        version=version,
        timeout=farm.clients.request_timeout,
        identity=access.identity,
        credentials=access.files.read(),
    )
    if out is not None:
        reply = save_outputs(reply, out)
    if as_json:
        typer.echo(json.dumps(reply.to_dict(), indent=2))
    else:
        console().print(reply_table(reply))


@models_app.command("pack-env", epilog="Example: exatrkx-hpc models pack-env --out environment --package torch")
def pack_env(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or archive NAME.tar.gz.")],
    python: Annotated[
        Path | None, typer.Option("--python", help="Python interpreter whose packages are packed (default: this one).")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option("--package", help="Additional package, such as torch; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack Python, numpy and scipy into an environment for the models.

    The environment is relocatable, so that the models can use it inside a container.
    """
    packed = pack_environment(out, python=python or Path(sys.executable), packages=(*NEEDED, *(package or ())))
    line = f"{out}: Python {packed.python}, {packed.libc} or newer, {len(packed.packages)} package(s)"
    answer(line, as_json=as_json, out=out, python=packed.python, libc=packed.libc, packages=list(packed.packages))


@models_app.command(epilog="Example: exatrkx-hpc models train --out models --seed 1")
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model repository to write the weights to.")],
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed of data and weights (default: the seed of the shipped weights)."),
    ] = None,
    events: EventSource = "auto",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Train for seconds instead of minutes; for tests only, the weights find few tracks."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the three networks on simulated events. Takes minutes on one core."""
    try:
        from exatrkx_hpc.tracking.training import provenance
        from exatrkx_hpc.tracking.training import train as training
    except ImportError as error:
        raise MissingComponent(
            f"models train needs PyTorch and SciPy ({error}); pip install 'exatrkx-hpc[train]'"
        ) from error
    _refuse_unwritable(out)  # now, not after minutes of training
    source = event_source(events)
    chosen = DEFAULT_SEED if seed is None else seed
    with stages(quiet=quiet or as_json) as show:
        networks = training.train(
            seed=chosen, settings=QUICK_TRAINING if quick else DEFAULT_TRAINING, source=source, on_progress=show
        )
    try:
        training.save(networks, out)
    except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError for a full disk
        raise _unwritable(out, error) from error
    found = training.hash_state(networks)
    made = provenance.Provenance.here(seed=chosen, acts=source is not generate_event)
    compared = provenance.compare(found, made, quick=quick)
    line = f"weights written to {out}, sha256 of their values {found}\n{compared}"
    answer(line, as_json=as_json, repository=out, sha256=found, note=compared)


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
    return OutputError(
        f"cannot write the weights to {out}: {reason}; check permissions and free space, or choose another --out"
    )
