"""`score`: score the labels of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc.cli.options import Json, Quiet, console, say
from exatrkx_hpc.cli.progress import stages as progress
from exatrkx_hpc.measure.plots import Format, Panel, save_panels
from exatrkx_hpc.scores import ResultsScore, Selection, score_results
from exatrkx_hpc.tracking.scoring.profiles import Profile
from exatrkx_hpc.tracking.scoring.score import MIN_PARTICLE_HITS, MIN_PT_GEV, MIN_TRACK_HITS

_RATES = {
    "efficiency": "efficiency",
    "purity": "purity",
    "fake_rate": "fake rate",
    "duplicate_rate": "duplicate rate",
}
_AXES = {"pt": "pT of the {} [GeV]", "eta": "η of the {}"}
_MOST_NAMES = 5


def score(
    results: Annotated[Path, typer.Argument(help="Output folder of run-clients, with labels/.")],
    truth: Annotated[Path, typer.Option("--truth", help="Folder of events, with truth/.")],
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Write figures against pT and η to this folder.")
    ] = None,
    plot_format: Annotated[Format, typer.Option("--format", help="Figure format: png, svg or pdf.")] = "png",
    stages: Annotated[
        Path | None, typer.Option("--stages", help="Model repository; run its stages here and score their edges.")
    ] = None,
    min_pt: Annotated[float, typer.Option(min=0.0, help="pT above which a particle counts, in GeV.")] = MIN_PT_GEV,
    min_hits: Annotated[int, typer.Option(min=1, help="Minimum hits of particles that count.")] = MIN_PARTICLE_HITS,
    min_track_hits: Annotated[int, typer.Option(min=1, help="Minimum hits of tracks that count.")] = MIN_TRACK_HITS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the labels of a run against the truth.

    Prints efficiency, purity, fake rate and duplicate rate, with tracks matched to particles by double majority.

    Example: exatrkx-hpc score results --truth events --plots figures
    """
    with progress(quiet=quiet) as show:
        scored = score_results(
            results,
            truth,
            selection=Selection(min_pt=min_pt, min_hits=min_hits, min_track_hits=min_track_hits),
            repository=stages,
            on_progress=show,
        )
    figures = _plot(scored, plots, plot_format) if plots is not None else []
    if as_json:
        typer.echo(json.dumps(scored.to_dict() | {"plots": [str(path) for path in figures]}, indent=2))
    else:
        _print(scored, figures)


def _print(scored: ResultsScore, figures: Sequence[Path]) -> None:
    console().print(_rates_table(scored))
    if scored.stages:
        console().print(_stages_table(scored))
    _say_missing("result(s) have no truth and are not scored", scored.without_truth)
    _say_missing("event(s) have no result and are not scored", scored.without_results)
    for path in figures:
        say(f"written: {path}")


def _say_missing(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        say(f"{len(names)} {what}: {', '.join(names[:_MOST_NAMES])}{more}")


def _rates_table(scored: ResultsScore) -> Table:
    chosen, counts = scored.selection, scored.score
    table = Table(title=f"{scored.events} events", title_justify="left")
    for column in ("rate", "value", "68 % interval", "count", "of"):
        table.add_column(column, justify="left" if column in {"rate", "of"} else "right")
    tracks = f"{counts.tracks} tracks of {chosen.min_track_hits} hits or more"
    parts = {
        "efficiency": (
            counts.found,
            f"{counts.particles} particles above {chosen.min_pt:g} GeV with {chosen.min_hits} hits or more",
        ),
        "purity": (counts.right_hits, f"{counts.matched_hits} hits of matched tracks"),
        "fake_rate": (counts.tracks - counts.matched, tracks),
        "duplicate_rate": (counts.duplicates, tracks),
    }
    for name, (value, low, high) in scored.rates().items():
        part, whole = parts[name]
        table.add_row(_RATES[name], _rate(value), f"{_rate(low)} to {_rate(high)}", str(part), whole)
    return table


def _stages_table(scored: ResultsScore) -> Table:
    table = Table(title="edges after each stage", title_justify="left")
    columns = ("stage", "edges", "efficiency", "of counted particles", "purity", "neighbours")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for one in scored.stages:
        rates = (one.efficiency, one.counted_efficiency, one.purity, one.neighbour_share)
        table.add_row(one.stage, str(one.edges), *map(_rate, rates))
    return table


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _plot(scored: ResultsScore, folder: Path, plot_format: Format) -> list[Path]:
    heading = f"{scored.events} events; bars are 68 % intervals; the outer bins hold all beyond"
    written = []
    for variable in ("pt", "eta"):
        panels = [_panel(profile, scored.selection) for profile in scored.profiles if profile.variable == variable]
        path = folder / f"score_{variable}.{plot_format}"
        save_panels(path, panels, heading=heading)
        written.append(path)
    return written


def _panel(profile: Profile, chosen: Selection) -> Panel:
    low, high = profile.interval
    cut = (chosen.min_pt, f"counted above {chosen.min_pt:g} GeV")
    of_particle = profile.rate == "efficiency"
    return Panel(
        title=_RATES[profile.rate],
        axis=_AXES[profile.variable].format("particle" if of_particle else "track"),
        edges=profile.edges.tolist(),
        value=profile.share.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        logarithmic=profile.variable == "pt",
        marked=cut if of_particle and profile.variable == "pt" else None,
    )
