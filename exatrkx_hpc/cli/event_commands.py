"""`events generate`, `events convert`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from exatrkx_hpc.base.errors import ConfigError, MissingComponent, OutputError
from exatrkx_hpc.cli.options import Json, Quiet, answer, say
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.traccc.simulation.cells import DEFAULT_BEAM, DEFAULT_PILE_UP
from exatrkx_hpc.traccc.simulation.files import write_events as write_cells
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
    kind: Annotated[
        Literal["hits", "cells"], typer.Option("--kind", help="Hits for ExaTrkX, or cells for traccc (needs pyacts).")
    ] = "hits",
    events: Annotated[int, typer.Option("--events", min=1, help="Number of events.")] = 100,
    tracks: Annotated[
        int | None,
        typer.Option("--tracks", min=0, help=f"Hits: particles per event (default: {synthetic.DEFAULT_TRACKS})."),
    ] = None,
    pile_up: Annotated[
        float | None,
        typer.Option(
            "--pile-up", min=0.0, help=f"Cells: mean number of pile-up vertices (default: {DEFAULT_PILE_UP:g})."
        ),
    ] = None,
    displaced: Annotated[
        float | None,
        typer.Option(
            "--displaced", min=0.0, max=1.0, help="Cells: share of particles from decays away from their vertex."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed; the same seed gives the same events.")] = 0,
    source: EventSource = "helices",
    form: Annotated[
        Format,
        typer.Option("--format", help="Format of hits: one file per event, or one Parquet file. Cells are always CSV."),
    ] = "csv",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generate events with known truth.

    Hits: helices in a toy detector, or particles simulated by ACTS, with noise. Cells: collisions in the
    GenericDetector of ACTS, with pile-up, as *-cells.csv.
    """
    if kind == "cells":
        if tracks is not None or form != "csv":
            raise ConfigError("--tracks and --format apply to hits only; use --pile-up for the size of events of cells")
        make = partial(_write_cells, pile_up=pile_up, displaced=displaced, seed=seed)
        size = f"a pile-up of {DEFAULT_PILE_UP if pile_up is None else pile_up:g}"
    else:
        if pile_up is not None or displaced is not None:
            raise ConfigError("--pile-up and --displaced apply to --kind cells only; use --tracks for hits")
        number = synthetic.DEFAULT_TRACKS if tracks is None else tracks
        make = partial(_write_hits, tracks=number, seed=seed, source=event_source(source), form=form)
        size = f"{number} tracks in an event"
    try:
        _refuse_events_of_another_call(out)
        out.mkdir(parents=True, exist_ok=True)
        with stages(quiet=quiet or as_json) as show:
            make(out, events, show)
    except OSError as error:
        raise OutputError(
            f"cannot write events to {out}: {error.strerror}; check permissions and free space"
        ) from error
    except MemoryError as error:
        lower = "--pile-up" if kind == "cells" else "--tracks"
        raise ConfigError(f"{size} do not fit into memory; lower {lower}") from error
    truth = out / synthetic.TRUTH_FOLDER
    answer(f"{events} events in {out}, their truth in {truth}", as_json=as_json, events=events, folder=out, truth=truth)


Show = Callable[[str, int, int], None]


def _write_hits(
    out: Path, events: int, show: Show, *, tracks: int, seed: int, source: synthetic.Source, form: Format
) -> None:
    with event_writer(out, form) as write:
        synthetic.write_events(
            out, events=events, tracks=tracks, seed=seed, source=source, write=write, on_progress=show
        )


def _write_cells(
    out: Path, events: int, show: Show, *, pile_up: float | None, displaced: float | None, seed: int
) -> None:
    require_pyacts("events of cells")
    beam = replace(DEFAULT_BEAM, displaced_fraction=displaced or 0.0)
    mean = DEFAULT_PILE_UP if pile_up is None else pile_up
    try:
        write_cells(out, events=events, pile_up=mean, beam=beam, seed=seed, on_progress=show)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def require_pyacts(what: str) -> None:
    """Raise MissingComponent, which says what needs pyacts, unless it is installed."""
    if not acts.is_installed():
        raise MissingComponent(f"{what} need pyacts, which is not installed; pip install 'exatrkx-hpc[acts]'")


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
