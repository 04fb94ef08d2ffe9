"""`events generate`, `events convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from exatrkx_hpc.base.errors import ConfigError, MissingComponent, OutputError
from exatrkx_hpc.cli.options import Json, Quiet, answer, say
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.tracking.simulation import acts, synthetic
from exatrkx_hpc.tracking.simulation.acts import SourceName
from exatrkx_hpc.work.events.convert import (
    Target,
    direction,
    events_to_events,
    events_to_json,
    holds_events,
    json_to_events,
)
from exatrkx_hpc.work.events.source import FORMATS, find_events, format_of
from exatrkx_hpc.work.events.writing import Float32, event_writer
from exatrkx_hpc.work.workloads.units import Angle, Length, Sample, converted

Format = Literal["csv", "npy", "npz", "parquet"]

events_app = typer.Typer(help="Generate events with known truth, and convert events.", no_args_is_help=True)

EventSource = Annotated[
    SourceName,
    typer.Option(help="Event generator: acts, helices (numpy only), or auto (acts if installed, else helices)."),
]


@events_app.callback()
def _events() -> None:
    """Generate events with known truth, and convert events."""


@events_app.command(epilog="Example: exatrkx-hpc events generate --out events --events 100")
def generate(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output folder; the truth is written to its subfolder truth/.")
    ],
    events: Annotated[int, typer.Option("--events", min=1, help="Number of events.")] = 100,
    tracks: Annotated[
        int, typer.Option("--tracks", min=0, help="Number of particles per event.")
    ] = synthetic.DEFAULT_TRACKS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed; the same seed gives the same events.")] = 0,
    source: EventSource = "helices",
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="Event format: one file per event, or one Parquet file. The truth is always CSV."
        ),
    ] = "csv",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generate events with noise and known truth: helices in a toy detector, or particles simulated by ACTS."""
    make = event_source(source)
    try:
        _refuse_events_of_another_call(out)
        out.mkdir(parents=True, exist_ok=True)
        with stages(quiet=quiet or as_json) as show, event_writer(out, form) as write:
            synthetic.write_events(
                out, events=events, tracks=tracks, seed=seed, source=make, write=write, on_progress=show
            )
    except OSError as error:
        raise OutputError(
            f"cannot write events to {out}: {error.strerror}; check permissions and free space"
        ) from error
    except MemoryError as error:
        raise ConfigError(f"{tracks} tracks in an event do not fit into memory; lower --tracks") from error
    truth = out / synthetic.TRUTH_FOLDER
    answer(f"{events} events in {out}, their truth in {truth}", as_json=as_json, events=events, folder=out, truth=truth)


def event_source(name: SourceName) -> synthetic.Source:
    """Return the event generator; raises MissingComponent if it is ACTS and not installed."""
    try:
        return acts.event_source(name)
    except ImportError as error:
        raise MissingComponent(
            f"events of ACTS need pyacts ({error}); pip install 'exatrkx-hpc[acts]', or choose helices"
        ) from error


@events_app.command(epilog="Example: exatrkx-hpc events convert events events.json")
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of events, event file, or perf_analyzer JSON file.")],
    out: Annotated[Path, typer.Argument(help="JSON file or new folder to write.")],
    to: Annotated[
        Target | None,
        typer.Option(
            "--to",
            help="Output format (default: json for events, csv for JSON; with --scale or --phi, that of the source).",
        ),
    ] = None,
    tensor: Annotated[str, typer.Option("--tensor", help="Name of the model input that holds the hits.")] = "FEATURES",
    as_base64: Annotated[
        bool, typer.Option("--base64", help="Write tensors as base64 instead of numbers (JSON output only).")
    ] = False,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="Name the events after those in this folder, in order (JSON input only)."),
    ] = None,
    scale: Annotated[
        Length | None,
        typer.Option("--scale", help="Unit of r and z in the source; converted to r/3000 mm and z/400 mm."),
    ] = None,
    phi: Annotated[
        Angle | None,
        typer.Option(
            "--phi", help="Unit of phi in the source: radians, degrees or pi (phi/pi, any turn); converted to phi/pi."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert events to perf_analyzer JSON (--input-data), such JSON to events, or events to another format.

    Events are a folder of *.csv, *.npy, *.npz or *.parquet files, or one such file.
    """
    if to is None and (scale or phi) and holds_events(source) and out.suffix != ".json":
        to = cast("Target", format_of(source))
    form, from_json = direction(source, to), not holds_events(source)
    if (as_base64 and form != "json") or (names is not None and not from_json):
        raise ConfigError("--base64 applies only to JSON output and --names only to JSON input; omit the option")
    sample, convert_hits = Sample(), converted(scale, phi)

    def change(hits: Float32) -> Float32:
        changed = convert_hits(hits)
        sample.add(changed)
        return changed

    with stages(quiet=quiet or as_json) as show:
        if form == "json":
            count = events_to_json(source, out, tensor=tensor, as_base64=as_base64, change=change, on_progress=show)
        elif from_json:
            known = [event.name for event in find_events(names)] if names is not None else None
            count = json_to_events(source, out, tensor=tensor, form=form, names=known, change=change, on_progress=show)
        else:
            count = events_to_events(source, out, form=form, change=change, on_progress=show)
    if scale and (strange := sample.strange()):
        say(f"warning: now {strange}; were the events in {scale}?")
    elif doubt := sample.doubt():
        say(f"warning: {doubt}")
    answer(f"{count} events in {out}", as_json=as_json, events=count, out=out)


def _refuse_events_of_another_call(out: Path) -> None:
    """Raise OutputError if `out` has events: events of two calls or seeds would look like one set."""
    held = sum(1 for form in FORMATS for path in out.glob(f"[!.]*.{form}"))
    if held:
        raise OutputError(f"{out} holds {held} events already; use them, remove the folder, or choose another --out")
