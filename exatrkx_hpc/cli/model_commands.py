"""`models build`, `check`, `install`, `test`, `pack-env` and `train`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import InputError, MissingComponent, ModelError, OutputError
from exatrkx_hpc.cli.event_commands import EventSource, event_source
from exatrkx_hpc.cli.options import ConfigFile, Json, Quiet, RunRoot, SiteName, console, resolved, say
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
from exatrkx_hpc.work.inference.probe import ask_model, asked_table, save_outputs
from exatrkx_hpc.work.workloads.exatrkx import HITS

models_app = typer.Typer(help="Build, check, fill, try and train model repositories.", no_args_is_help=True)

#: `install` tries networks on so many events of a folder, of so many hits at least, among the first so many.
_SAMPLES, _LEAST_HITS, _MOST_TRIED = 3, 50, 100

Source = Annotated[
    Path | None, typer.Option("--source", help="The repository to start from; default: the shipped one.")
]


@models_app.command(epilog="Example: exatrkx-hpc models build --device gpu --instances 2 --out models")
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; replaced if it was built before.")],
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="What the networks run on.")] = "gpu",
    instances: Annotated[int, typer.Option(help="Instances of each model in a server.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of a server; each gets instances of the stages on the CPU, too.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each network instance on a CPU.")] = 1,
    environment: Annotated[Path | None, typer.Option(help="Python environment for the Python models.")] = None,
    fused: Annotated[
        bool, typer.Option(help="With exatrkx_fused, which needs PyTorch there, and on a GPU CuPy.")
    ] = True,
    names: Annotated[
        list[str] | None, typer.Option("--as", help="A further name of the fused model, such as exatrkxgpu.")
    ] = None,
    source: Source = None,
    config: ConfigFile = None,
) -> None:
    """Write a copy of the model repository, specialised for a device and a number of instances."""
    built = build_repository(
        source or asset("model_repos/exatrkx"),
        out,
        device=device,
        instances=instances,
        gpus=gpus,
        threads=threads,
        environment=environment,
        fused=fused,
        names=names or (),
        places=container_places(resolved(config).farm),
    )
    typer.echo(f"{built.path}: {len(built.models)} models for {device}, {instances} instance(s) each")


@models_app.command(epilog="Example: exatrkx-hpc models check models")
def check(
    repository: Annotated[Path, typer.Argument(help="The repository's folder.")],
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Find what Triton would refuse, or would silently get wrong.

    Where the farm has a container, a path in a configuration is looked for through its server.mounts.
    """
    findings = check_repository(repository, places=container_places(resolved(config).farm))
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.model}: {finding.what}; {finding.remedy}")
    if findings:
        raise ModelError(f"{repository} has {len(findings)} fault(s)")
    if not as_json:
        typer.echo(f"{repository}: no fault found")


@models_app.command(
    epilog="Example: exatrkx-hpc models install --embed embed.pt --filter filter.pt --gnn gnn.pt --out site-models"
)
def install(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The repository that gets them; made from --source if it is new.")
    ],
    embed: Annotated[
        Path | None, typer.Option("--embed", help="TorchScript or ONNX file: hits [N,3] to [N,D].")
    ] = None,
    edge_filter: Annotated[
        Path | None, typer.Option("--filter", help="TorchScript or ONNX file: hits [N,3], edges [2,E] to logits.")
    ] = None,
    gnn: Annotated[
        Path | None, typer.Option("--gnn", help="TorchScript or ONNX file: hits [N,3], edges [2,E] to logits.")
    ] = None,
    radius: Annotated[float | None, typer.Option(help="Radius of the neighbour search in the embedding.")] = None,
    max_neighbours: Annotated[int | None, typer.Option(help="Neighbours of a hit at most.")] = None,
    filter_cut: Annotated[float | None, typer.Option(help="Probability above which an edge passes the filter.")] = None,
    gnn_cut: Annotated[float | None, typer.Option(help="Probability above which an edge joins its hits.")] = None,
    scores: Annotated[
        Literal["logits", "probabilities"] | None, typer.Option(help="What filter and gnn give; default: logits.")
    ] = None,
    edge_order: Annotated[
        Literal["number", "radius", "both"] | None,
        typer.Option(help="First hit of an edge: the larger number (default), the inner one; or each edge both ways."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", "-d", help="Events of your detector to try them with; default: simulated."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="JSON file: the columns of a hit, their scales and ranges.")
    ] = None,
    source: Source = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Put your own networks and constants into a repository, checked on a sample: all of them, or none."""
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
    """Return the first events of a folder that have enough hits to tell anything."""
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
        raise InputError(f"{folder} has no event of {_LEAST_HITS} hits or more to try the networks with")
    return tuple(found)


@models_app.command(epilog="Example: exatrkx-hpc models test exatrkx events/evt_000000.csv --server 127.0.0.1:9191")
def test(
    model: Annotated[str, typer.Argument(help="The model's name, exatrkx or any other that the server has.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT.csv", help="A file for each input in its order, or NAME=FILE.")
    ],
    server: Annotated[
        str | None, typer.Option("--server", "-s", help="The endpoint, HOST:PORT; default: the running farm's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the outputs go: a folder, or a .csv for a single one.")
    ] = None,
    version: Annotated[str, typer.Option("--model-version", help="The model's version; default: the newest.")] = "",
    as_json: Json = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
) -> None:
    """Send the tensors of CSV files to one model, show the shapes and types, and write its outputs as CSV."""
    farm = resolved(config, site=site, run_root=run_root).farm
    address = server or story.endpoint_record(farm).grpc
    asked = ask_model(address, model, inputs, version=version, timeout=farm.clients.request_timeout)
    if out is not None:
        asked = save_outputs(asked, out)
    if as_json:
        typer.echo(json.dumps(asked.to_dict(), indent=2))
    else:
        console().print(asked_table(asked))


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
        int | None, typer.Option(min=0, help="Seed of data and weights; default: that of the shipped ones.")
    ] = None,
    events: EventSource = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, not minutes; the weights find little.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the three networks on simulated events and write their weights; minutes on one core."""
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
    with stages(quiet=quiet) as show:
        networks = training.train(
            seed=chosen, settings=QUICK_TRAINING if quick else DEFAULT_TRAINING, source=source, on_progress=show
        )
    try:
        training.save(networks, out)
    except (OSError, RuntimeError) as error:  # PyTorch says RuntimeError for a full disk
        raise _unwritable(out, error) from error
    found = training.hash_state(networks)
    typer.echo(f"weights written to {out}, sha256 of their values {found}")
    made = provenance.Provenance.here(seed=chosen, acts=source is not generate_event)
    typer.echo(provenance.compare(found, made, quick=quick))


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
