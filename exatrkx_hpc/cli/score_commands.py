"""`score`: score the labels of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.cli.options import Json, Quiet, console, say
from exatrkx_hpc.cli.progress import stages as progress
from exatrkx_hpc.measure.plots import Format, Panel, save_panels
from exatrkx_hpc.scores import ResultsScore, Selection, score_results
from exatrkx_hpc.traccc.scoring.score import MIN_HITS as MIN_MEASUREMENTS
from exatrkx_hpc.track_scores import UNITS, TrackResultsScore, has_tracks, score_track_results
from exatrkx_hpc.tracking.scoring.profiles import Profile
from exatrkx_hpc.tracking.scoring.score import MIN_PARTICLE_HITS, MIN_PT_GEV, MIN_TRACK_HITS, Score

_RATES = {
    "efficiency": "efficiency",
    "purity": "purity",
    "fake_rate": "fake rate",
    "duplicate_rate": "duplicate rate",
}
_AXES = {"pt": "pT of the {} [GeV]", "eta": "η of the {}"}
_MOST_NAMES = 5


def score(
    results: Annotated[Path, typer.Argument(help="Output folder of run-clients, with labels/ or tracks/.")],
    truth: Annotated[Path, typer.Option("--truth", help="Folder of events, with truth/.")],
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Write figures against pT and η to this folder.")
    ] = None,
    plot_format: Annotated[Format, typer.Option("--format", help="Figure format: png, svg or pdf.")] = "png",
    stages: Annotated[
        Path | None, typer.Option("--stages", help="Model repository; run its stages here and score their edges.")
    ] = None,
    min_pt: Annotated[float, typer.Option(min=0.0, help="pT above which a particle counts, in GeV.")] = MIN_PT_GEV,
    min_hits: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Minimum hits of particles that count (default: {MIN_PARTICLE_HITS}; of cells {MIN_MEASUREMENTS}).",
        ),
    ] = None,
    min_track_hits: Annotated[
        int | None, typer.Option(min=1, help=f"Minimum hits of tracks that count (default: {MIN_TRACK_HITS}).")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the labels of a run, or the tracks of traccc, against the truth.

    Prints efficiency, purity, fake rate and duplicate rate, with tracks matched to particles by double majority. For
    tracks, also prints the resolutions and pull widths of the fitted parameters.

    Example: exatrkx-hpc score results --truth events --plots figures
    """
    if has_tracks(results, truth):
        if plots or stages or min_track_hits:
            raise ConfigError("--plots, --stages and --min-track-hits apply to labels only; omit them for tracks")
        _score_tracks(
            results, truth, min_pt=min_pt, min_hits=min_hits or MIN_MEASUREMENTS, quiet=quiet, as_json=as_json
        )
        return
    chosen = Selection(
        min_pt=min_pt, min_hits=min_hits or MIN_PARTICLE_HITS, min_track_hits=min_track_hits or MIN_TRACK_HITS
    )
    with progress(quiet=quiet) as show:
        scored = score_results(
            results,
            truth,
            selection=chosen,
            repository=stages,
            on_progress=show,
        )
    figures = _plot(scored, plots, plot_format) if plots is not None else []
    if as_json:
        typer.echo(json.dumps(scored.to_dict() | {"plots": [str(path) for path in figures]}, indent=2))
    else:
        _print(scored, figures)


def _score_tracks(results: Path, truth: Path, *, min_pt: float, min_hits: int, quiet: bool, as_json: bool) -> None:
    with progress(quiet=quiet) as show:
        scored = score_track_results(results, truth, min_pt=min_pt, min_hits=min_hits, on_progress=show)
    if as_json:
        typer.echo(json.dumps(scored.to_dict(), indent=2))
        return
    counts = scored.score
    particles = f"{counts.particles} particles above {min_pt:g} GeV with {min_hits} measurements or more"
    whole = (particles, f"{counts.matched_hits} measurements of matched tracks", f"{counts.tracks} tracks")
    console().print(_rates_of(scored.events, counts, scored.rates(), *whole))
    console().print(_fits_table(scored))
    _say_missing("result(s) have no truth and are not scored", scored.without_truth)
    _say_missing("event(s) have no result and are not scored", scored.without_results)


def _fits_table(scored: TrackResultsScore) -> Table:
    title = f"{len(scored.score.pulls)} fits; half the width of the central 68.3 %"
    table = Table(title=title, title_justify="left")
    for column in ("parameter", "resolution", "unit", "pull width"):
        table.add_column(column, justify="left" if column in {"parameter", "unit"} else "right")
    widths = scored.score.pull_widths
    for name, value in scored.score.resolutions.items():
        table.add_row(name, "-" if math.isnan(value) else f"{value:.3g}", UNITS[name], _rate(widths[name]))
    return table


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
    particles = f"{counts.particles} particles above {chosen.min_pt:g} GeV with {chosen.min_hits} hits or more"
    tracks = f"{counts.tracks} tracks of {chosen.min_track_hits} hits or more"
    hits = f"{counts.matched_hits} hits of matched tracks"
    return _rates_of(scored.events, counts, scored.rates(), particles, hits, tracks)


def _rates_of(
    events: int, counts: Score, rates: Mapping[str, tuple[float, float, float]], particles: str, hits: str, tracks: str
) -> Table:
    """Return the table of rates; the last three say what each rate is of."""
    table = Table(title=f"{events} events", title_justify="left")
    for column in ("rate", "value", "68 % interval", "count", "of"):
        table.add_column(column, justify="left" if column in {"rate", "of"} else "right")
    parts = {
        "efficiency": (counts.found, particles),
        "purity": (counts.right_hits, hits),
        "fake_rate": (counts.tracks - counts.matched, tracks),
        "duplicate_rate": (counts.duplicates, tracks),
    }
    for name, (value, low, high) in rates.items():
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
