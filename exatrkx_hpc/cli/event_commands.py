"""`events generate`, `events convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from exatrkx_hpc.base.errors import ConfigError, MissingComponent, OutputError
from exatrkx_hpc.cli.options import Quiet, say
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

events_app = typer.Typer(help="Make events with known truth, and convert events.", no_args_is_help=True)

EventSource = Annotated[
    SourceName,
    typer.Option(help="What makes events: ACTS, the numpy generator's helices, or (auto) ACTS where it is installed."),
]


@events_app.callback()
def _events() -> None:
    """Make events with known truth, and convert events."""


@events_app.command(epilog="Example: exatrkx-hpc events generate --out events --events 100")
def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to; truth goes to its folder truth/.")],
    events: Annotated[int, typer.Option("--events", min=1, help="How many events.")] = 100,
    tracks: Annotated[int, typer.Option("--tracks", min=0, help="Particles in each event.")] = synthetic.DEFAULT_TRACKS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same events.")] = 0,
    source: EventSource = "helices",
    form: Annotated[
        Format, typer.Option("--format", help="A file for each event, or one Parquet file; truth is CSV.")
    ] = "csv",
    quiet: Quiet = False,
) -> None:
    """Write events with known truth: helices in a toy detector, or particles that ACTS simulates; and noise."""
    make = event_source(source)
    try:
        _refuse_events_of_another_call(out)
        out.mkdir(parents=True, exist_ok=True)
        with stages(quiet=quiet) as show, event_writer(out, form) as write:
            synthetic.write_events(
                out, events=events, tracks=tracks, seed=seed, source=make, write=write, on_progress=show
            )
    except OSError as error:
        raise OutputError(f"events cannot be written to {out}: {error.strerror}") from error
    except MemoryError as error:
        raise ConfigError(f"{tracks} tracks in an event do not fit into memory; lower --tracks") from error
    typer.echo(f"{events} events in {out}, their truth in {out / synthetic.TRUTH_FOLDER}")


def event_source(name: SourceName) -> synthetic.Source:
    """Return what makes events; raises MissingComponent when ACTS is asked for and is not installed."""
    try:
        return acts.event_source(name)
    except ImportError as error:
        raise MissingComponent(
            f"events of ACTS need pyacts ({error}); pip install 'exatrkx-hpc[acts]', or choose helices"
        ) from error


@events_app.command(epilog="Example: exatrkx-hpc events convert events events.json")
def convert(
    source: Annotated[Path, typer.Argument(help="Events, or a JSON file.")],
    out: Annotated[Path, typer.Argument(help="The JSON file, or the new folder.")],
    to: Annotated[Target | None, typer.Option("--to", help="What it becomes; default: what the source is not.")] = None,
    tensor: Annotated[str, typer.Option("--tensor", help="The model's input that the hits are.")] = "FEATURES",
    as_base64: Annotated[bool, typer.Option("--base64", help="Write bytes in base64, not numbers.")] = False,
    names: Annotated[
        Path | None, typer.Option("--names", help="From JSON: a folder of events whose names they get, in order.")
    ] = None,
    scale: Annotated[
        Length | None,
        typer.Option("--scale", help="r and z are in this unit; make r/3000 mm and z/400 mm of them."),
    ] = None,
    phi: Annotated[
        Angle | None,
        typer.Option("--phi", help="phi is in radians, degrees, or (pi) in phi/pi of any turn; make phi/pi of it."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn events into perf_analyzer's JSON (--input-data), such JSON into events, or events into another format.

    Events are a folder of *.csv, *.npy, *.npz or *.parquet, or one such file.
    """
    if to is None and (scale or phi) and holds_events(source) and out.suffix != ".json":
        to = cast("Target", format_of(source))
    form, from_json = direction(source, to), not holds_events(source)
    if (as_base64 and form != "json") or (names is not None and not from_json):
        raise ConfigError("--base64 is for writing JSON, --names for reading it; leave it out")
    sample, convert_hits = Sample(), converted(scale, phi)

    def change(hits: Float32) -> Float32:
        changed = convert_hits(hits)
        sample.add(changed)
        return changed

    with stages(quiet=quiet) as show:
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
    typer.echo(f"{count} events in {out}")


def _refuse_events_of_another_call(out: Path) -> None:
    """Raise OutputError when `out` holds events: those of two calls or seeds would pass for one set."""
    held = sum(1 for form in FORMATS for path in out.glob(f"[!.]*.{form}"))
    if held:
        raise OutputError(f"{out} holds {held} events already; use them, remove the folder, or choose another --out")
