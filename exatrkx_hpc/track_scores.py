"""Score the fitted tracks of a run against the truth of its cells: for `exatrkx-hpc score` and notebooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.traccc.scoring.score import FITTED, MIN_HITS, TrackScore, score_tracks, total_track_scores
from exatrkx_hpc.traccc.simulation.files import TRUTH_FOLDER, read_truth
from exatrkx_hpc.tracking.scoring.rates import rates_of
from exatrkx_hpc.tracking.scoring.score import MIN_PT_GEV, Score
from exatrkx_hpc.work.results.read import FoundResults
from exatrkx_hpc.work.workloads.traccc import WORKLOAD, tracks_of

#: Called as (stage, done, total) after each event.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class TrackResultsScore:
    """The score of a folder of tracks over `events` events.

    A particle counts with a pT above `min_pt` GeV and at least `min_hits` measurements. `without_truth` has the names
    of results without a truth, `without_results` those of truths without a result; neither is part of the score.
    """

    min_pt: float
    min_hits: int
    events: int
    without_truth: tuple[str, ...]
    without_results: tuple[str, ...]
    score: TrackScore

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Return each rate as (value, low, high) with its 68 % interval; nan if the denominator is 0."""
        return rates_of(self.score)

    def to_dict(self) -> dict[str, object]:
        """Return the score as JSON values; null if a denominator is 0."""
        return {
            "events": self.events,
            "without_truth": list(self.without_truth),
            "without_results": list(self.without_results),
            "selection": {"min_pt": self.min_pt, "min_hits": self.min_hits},
            "counts": {count.name: getattr(self.score, count.name) for count in fields(Score)},
            **{
                name: dict(zip(("value", "low", "high"), map(_number, triple), strict=True))
                for name, triple in self.rates().items()
            },
            "fitted": len(self.score.pulls),
            "resolutions": {name: _number(value) for name, value in self.score.resolutions.items()},
            "pull_widths": {name: _number(value) for name, value in self.score.pull_widths.items()},
        }


def has_tracks(results: Path, truth: Path) -> bool:
    """Return whether these folders are of cells: tracks in the one, or the truth of cells in the other."""
    return (results / WORKLOAD.folder).is_dir() or any((truth / TRUTH_FOLDER).glob("*.npz"))


def score_track_results(
    results: Path,
    truth: Path,
    *,
    min_pt: float = MIN_PT_GEV,
    min_hits: int = MIN_HITS,
    on_progress: Progress | None = None,
) -> TrackResultsScore:
    """Return the score of the tracks that `run-clients` wrote to `results`, against the truth in the folder `truth`.

    `results` is the output folder with `tracks/`, or the folder of tracks itself. `truth` has `truth/NAME.npz`, as
    `events generate --kind cells` writes it. Raises InputError for a folder or file that cannot be used, or when no
    event has tracks and truth.
    """
    found, known = _found(results), _truths(truth)
    both = [name for name in known if name in found.names]
    if not both:
        raise InputError(f"no event of {truth} has tracks in {results}; choose folders of the same run")
    scores = []
    for done, name in enumerate(both, start=1):
        scores.append(_score_one(found, name, known[name], min_pt=min_pt, min_hits=min_hits))
        if on_progress:
            on_progress("events", done, len(both))
    return TrackResultsScore(
        min_pt=min_pt,
        min_hits=min_hits,
        events=len(both),
        without_truth=tuple(name for name in found.names if name not in known),
        without_results=tuple(name for name in known if name not in found.names),
        score=total_track_scores(scores),
    )


def _found(results: Path) -> FoundResults:
    inner = results / WORKLOAD.folder
    folder = inner if inner.is_dir() else results
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; choose the folder that 'exatrkx-hpc run-clients' wrote")
    found = FoundResults(folder, WORKLOAD)
    if not found.names:
        raise InputError(f"{folder} has no tracks; choose the folder that 'exatrkx-hpc run-clients' wrote")
    return found


def _truths(folder: Path) -> dict[str, Path]:
    """Return the file of the truth of each event that has one, by name."""
    paths = sorted((folder / TRUTH_FOLDER).glob("[!.]*.npz"))
    if not paths:
        raise InputError(
            f"{folder} has no {TRUTH_FOLDER}/*.npz; set --truth to the folder that 'exatrkx-hpc events generate --kind "
            "cells' wrote"
        )
    return {path.stem: path for path in paths}


def _score_one(found: FoundResults, name: str, truth: Path, *, min_pt: float, min_hits: int) -> TrackScore:
    outputs = found.read(name)
    if missing := [spec.name for spec in WORKLOAD.outputs if spec.name not in outputs]:
        raise InputError(f"{found.names[name]} has no array {missing[0]}; it is not a result of traccc: move it away")
    try:
        return score_tracks(tracks_of(outputs), read_truth(truth), min_pt=min_pt, min_hits=min_hits)
    except OSError as error:
        raise InputError(f"cannot read {truth}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{name} cannot be scored: {error}") from error


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


#: The unit of each fitted parameter, for tables.
UNITS = dict(zip(FITTED, ("mm", "mm", "rad", "rad", "e / GeV"), strict=True))
