"""Score the results of a run against their truth: for `exatrkx-hpc score` and notebooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.models.pipeline import load_pipeline
from exatrkx_hpc.tracking.scoring.matching import match_event
from exatrkx_hpc.tracking.scoring.profiles import Profile, profile_event, total_profiles
from exatrkx_hpc.tracking.scoring.rates import rates_of
from exatrkx_hpc.tracking.scoring.score import (
    MIN_PARTICLE_HITS,
    MIN_PT_GEV,
    MIN_TRACK_HITS,
    Score,
    score_matches,
    total,
)
from exatrkx_hpc.tracking.scoring.stages import StageScore, score_stages, total_stages
from exatrkx_hpc.tracking.simulation.synthetic import TRUTH_FOLDER, TruthEvent, truth_of, with_truth
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import CSV, find_events, format_of
from exatrkx_hpc.work.results.read import FoundResults
from exatrkx_hpc.work.workloads.exatrkx import LABELS, WORKLOAD

if TYPE_CHECKING:
    from exatrkx_hpc.tracking.pipeline import Pipeline

#: Called as (stage, done, total) after each event.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The particles and tracks that count.

    Particles have a pT above `min_pt` GeV and at least `min_hits` hits, tracks at least `min_track_hits` hits.
    """

    min_pt: float = MIN_PT_GEV
    min_hits: int = MIN_PARTICLE_HITS
    min_track_hits: int = MIN_TRACK_HITS


@dataclass(frozen=True, kw_only=True)
class ResultsScore:
    """The score of a folder of results over `events` events, with profiles and, if requested, stages.

    `without_truth` has the names of results without a truth, `without_results` the names of events without a result;
    neither is part of the score.
    """

    selection: Selection
    events: int
    without_truth: tuple[str, ...]
    without_results: tuple[str, ...]
    score: Score
    profiles: tuple[Profile, ...]
    stages: tuple[StageScore, ...]

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Return each rate as (value, low, high) with its `wilson_interval`; nan if the denominator is 0."""
        return rates_of(self.score)

    def to_dict(self) -> dict[str, object]:
        """Return the score as JSON values; null if a denominator is 0."""
        return {
            "events": self.events,
            "without_truth": list(self.without_truth),
            "without_results": list(self.without_results),
            "selection": asdict(self.selection),
            "counts": asdict(self.score),
            **{name: _numbers(triple) for name, triple in self.rates().items()},
            "profiles": [_profile_dict(profile) for profile in self.profiles],
            "stages": [_stage_dict(stage) for stage in self.stages],
        }


def score_results(
    results: Path,
    truth: Path,
    *,
    selection: Selection | None = None,
    repository: Path | None = None,
    on_progress: Progress | None = None,
) -> ResultsScore:
    """Return the score of the labels that `run-clients` wrote to `results`, against the truth in the folder `truth`.

    `results` is the output folder with `labels/`, or the labels folder itself, with `NAME.csv` or Parquet files.
    `truth` has `NAME.csv` and `truth/NAME.csv`, as `events generate` writes them. With a model `repository`, the same
    events also go through its pipeline in this process, and each stage is scored. Raises InputError for a folder or
    file that cannot be used, or when no event has labels and truth; ModelError or MissingComponent for a repository
    that cannot run.
    """
    chosen = selection or Selection()
    labels = _labels(results)
    events = _truth_events(truth)
    both = [name for name in events if name in labels.names]
    if not both:
        raise InputError(f"no event of {truth} has labels in {results}; choose folders of the same run")
    pipeline = load_pipeline(repository) if repository is not None else None
    # Only the sums stay in memory: the profiles of one event take 5 kB.
    score, profiles, stages = _score_one(labels, both[0], events[both[0]], chosen, pipeline)
    for done, name in enumerate(both, start=1):
        if done > 1:
            one, of_one, stages_of_one = _score_one(labels, name, events[name], chosen, pipeline)
            score = total((score, one))
            profiles = total_profiles((profiles, of_one))
            stages = total_stages((stages, stages_of_one))
        if on_progress:
            on_progress("events", done, len(both))
    return ResultsScore(
        selection=chosen,
        events=len(both),
        without_truth=tuple(name for name in labels.names if name not in events),
        without_results=tuple(name for name in events if name not in labels.names),
        score=score,
        profiles=profiles,
        stages=stages,
    )


def _labels(results: Path) -> FoundResults:
    inner = results / WORKLOAD.folder
    folder = inner if inner.is_dir() else results
    _require_folder(folder, "the folder that 'exatrkx-hpc run-clients' wrote")
    found = FoundResults(folder, WORKLOAD)
    if not found.names:
        raise InputError(f"{folder} has no labels; choose the folder that 'exatrkx-hpc run-clients' wrote")
    return found


def _truth_events(folder: Path) -> dict[str, Path]:
    """Return the paths of the events that have a truth, by name."""
    _require_folder(folder, "another --truth, the folder of events")
    if not (folder / TRUTH_FOLDER).is_dir():
        where = folder.parent if folder.name == TRUTH_FOLDER else "the folder that 'exatrkx-hpc events generate' wrote"
        raise InputError(f"{folder} has no folder {TRUTH_FOLDER}; set --truth to {where}")
    if (form := format_of(folder)) != CSV:
        raise InputError(f"the events of {folder} are *.{form}; score needs events and truth as CSV")
    known = {event.name for event in find_events(folder / TRUTH_FOLDER, CSV)}
    return {event.name: event.path for event in find_events(folder, CSV) if event.name in known}


def _require_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; choose {what}")


def _score_one(
    labels: FoundResults, name: str, event: Path, chosen: Selection, pipeline: Pipeline | None
) -> tuple[Score, tuple[Profile, ...], tuple[StageScore, ...]]:
    truth = _read_truth(event)
    try:
        matches = match_event(labels.read(name)[LABELS], truth, min_track_hits=chosen.min_track_hits)
    except ValueError as error:
        raise InputError(f"{labels.names[name]} does not belong to {event}: {error}") from error
    pt, hits = chosen.min_pt, chosen.min_hits
    return (
        score_matches(matches, truth, min_pt=pt, min_hits=hits),
        profile_event(matches, truth, min_pt=pt, min_hits=hits),
        score_stages(pipeline, truth, min_pt=pt, min_hits=hits) if pipeline is not None else (),
    )


def _read_truth(event: Path) -> TruthEvent:
    hits, truth = read_hits(event), truth_of(event)
    try:
        return with_truth(hits, truth.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {truth}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{event} and its truth cannot be used: {truth}: {error}; generate them again") from error


def _numbers(triple: tuple[float, float, float]) -> dict[str, float | None]:
    return {key: _number(value) for key, value in zip(("value", "low", "high"), triple, strict=True)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _profile_dict(profile: Profile) -> dict[str, object]:
    low, high = profile.interval
    columns = {"value": profile.share, "low": low, "high": high}
    return {
        "rate": profile.rate,
        "variable": profile.variable,
        "edges": profile.edges.tolist(),
        "part": profile.part.tolist(),
        "whole": profile.whole.tolist(),
        **{name: [_number(value) for value in column.tolist()] for name, column in columns.items()},
    }


def _stage_dict(stage: StageScore) -> dict[str, object]:
    names = ("efficiency", "counted_efficiency", "purity", "neighbour_share")
    return asdict(stage) | {name: _number(getattr(stage, name)) for name in names}
