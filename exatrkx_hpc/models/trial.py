"""Try the networks of a repository on sample events, and report output that a good network does not give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.models.trial_network import Network, Remark, behaviour
from exatrkx_hpc.tracking.constants import NETWORK_NAMES, Float32, Int64, PipelineSettings
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features, features_of, radii_of
from exatrkx_hpc.tracking.filtering import accepted
from exatrkx_hpc.tracking.scoring.graphs import are_strangers, true_edges
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent, generate_event

#: Number of simulated events, and of particles per event; about 660 hits each.
_EVENTS, _TRACKS = 3, 60
#: Largest share of all pairs of hits that may lie within the radius.
_MOST_PAIRS = 0.5
#: Fewer edges than this are not enough to judge a network.
_FEW = 20
#: Limits on the probability that a pair of one track scores above another pair: below the first, the sign is flipped;
#: below the second, the network is hardly better than guessing.
_FLIPPED, _GUESSING = 0.3, 0.55


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An event for a trial: hits float32 `[N, F]`, and the truth if it is known."""

    hits: Float32
    truth: TruthEvent | None = None


def simulated_samples(features: Features = DEFAULT_FEATURES) -> tuple[Sample, ...]:
    """Return the same simulated events each time; without truth if some features cannot be simulated."""
    events = [generate_event(np.random.default_rng(seed), n_tracks=_TRACKS) for seed in range(_EVENTS)]
    made = [(event, *features_of(event.hits, features)) for event in events]
    return tuple(Sample(hits=hits, truth=None if unknown else event) for event, hits, unknown in made)


def try_networks(
    files: dict[str, Path],
    settings: PipelineSettings,
    samples: Sequence[Sample],
    *,
    scores_stated: bool,
    features: Features = DEFAULT_FEATURES,
) -> tuple[Remark, ...]:
    """Return remarks on suspect output of the networks for `samples`, in the order embed, filter, gnn.

    `files` has a TorchScript or ONNX file for each network. Each network gets the output of the stages before it, as in
    the pipeline. `scores_stated` says whether the kind of the scores was set explicitly. Raises ModelError for a file
    that cannot be loaded or fails.
    """
    networks = {name: Network(name, files[name], features) for name in NETWORK_NAMES}
    runs = [_run(networks, settings, sample, features) for sample in samples]
    remarks = [*_embedding_remarks(runs, settings)]
    for name, cut, option in (
        ("filter", settings.filter_cut, "--filter-cut"),
        ("gnn", settings.gnn_cut, "--gnn-cut"),
    ):
        found = [run.answers[name] for run in runs]
        remarks += _score_remarks(name, found, settings, cut=cut, option=option, stated=scores_stated)
    for network in networks.values():
        edges = None if network.name == "embed" else runs[0].answers[network.name].edges
        remarks += behaviour(network, runs[0].sample.hits, edges)
    return tuple(sorted(remarks, key=lambda remark: NETWORK_NAMES.index(remark.model)))


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The scores `[E]` of an edge network for `edges` `[2, E]` of a sample, and whether each edge is of one track."""

    edges: Int64
    values: Float32
    same_track: Any


@dataclass(frozen=True, kw_only=True)
class _Run:
    sample: Sample
    embedding: Float32
    candidates: Int64
    answers: dict[str, _Answer]


def _run(networks: dict[str, Network], settings: PipelineSettings, sample: Sample, features: Features) -> _Run:
    hits = sample.hits
    embedding = networks["embed"](hits)
    candidates = _candidates(embedding, settings)
    edges = candidates if candidates.shape[1] >= _FEW else _any_edges(sample)
    if settings.edge_order != "number":
        from exatrkx_hpc.tracking.frnn import in_order  # needs SciPy

        edges = in_order(edges, settings.edge_order, radii_of(hits, features))
    answers = {}
    for name, cut in (("filter", settings.filter_cut), ("gnn", settings.gnn_cut)):
        values = networks[name](hits, edges).reshape(-1)
        same = None if sample.truth is None else ~are_strangers(sample.truth, edges)
        answers[name] = _Answer(edges=edges, values=values, same_track=same)
        passed = edges[:, accepted(values, cut=cut, scores=settings.scores)]
        edges = passed if passed.shape[1] >= _FEW else edges
    return _Run(sample=sample, embedding=embedding, candidates=candidates, answers=answers)


def _candidates(embedding: Float32, settings: PipelineSettings) -> Int64:
    if not np.isfinite(embedding).all() or _share_within(embedding, settings.radius) > _MOST_PAIRS:
        return np.empty((2, 0), dtype=np.int64)
    try:
        from exatrkx_hpc.tracking.frnn import fixed_radius_edges
    except ImportError as error:
        raise MissingComponent(f"trying networks needs SciPy ({error}); pip install 'exatrkx-hpc[train]'") from error
    return fixed_radius_edges(embedding, radius=settings.radius, max_neighbours=settings.max_neighbours)


def _any_edges(sample: Sample) -> Int64:
    """Return edges for a sample without candidates: the true edges, if known, and 3 N random pairs of its N hits."""
    n = len(sample.hits)
    pairs = np.random.default_rng(0).integers(max(n, 1), size=(2, 3 * n))
    if sample.truth is not None:
        pairs = np.concatenate([true_edges(sample.truth), pairs], axis=1)
    edges = np.stack([pairs.max(axis=0), pairs.min(axis=0)])[:, pairs[0] != pairs[1]]
    return np.ascontiguousarray(edges, dtype=np.int64)


def _distances(embedding: Float32, *, most: int = 700) -> Any:  # noqa: ANN401 - an array
    """Return the distances of all pairs among the first hits."""
    places = embedding[:most].astype(np.float64)
    upper = np.triu_indices(len(places), k=1)
    return np.sqrt(((places[upper[0]] - places[upper[1]]) ** 2).sum(axis=1))


def _share_within(embedding: Float32, radius: float) -> float:
    distances = _distances(embedding)
    return float((distances <= radius).mean()) if distances.size else 0.0


def _embedding_remarks(runs: Sequence[_Run], settings: PipelineSettings) -> Iterator[Remark]:
    def remark(what: str, *, refused: bool = True) -> Remark:
        return Remark(model="embed", what=what, refused=refused)

    own = "check the radius (--radius), or repeat the check with events of your detector (--events FOLDER)"
    bad = [run for run in runs if not np.isfinite(run.embedding).all()]
    if bad:
        yield remark("gives a NaN or an infinity for a sample event; choose another file")
        return
    share = float(np.mean([_share_within(run.embedding, settings.radius) for run in runs]))
    if all(len(run.embedding) > 1 and np.ptp(run.embedding, axis=0).max() <= 1e-6 for run in runs):
        yield remark("maps every hit to the same point; choose another file")
    elif share > _MOST_PAIRS:
        yield remark(f"puts {share:.0%} of all pairs of hits within the radius {settings.radius:g}; {own}")
    elif not any(run.candidates.shape[1] for run in runs):
        nearest = min(float(distances.min()) for run in runs if (distances := _distances(run.embedding)).size)
        yield remark(f"puts no two hits within the radius {settings.radius:g} (nearest: {nearest:.3g}); {own}")
    elif (found := _neighbours_found(runs)) is not None and found < 0.1:
        what = f"finds {found:.0%} of the neighbours along simulated tracks within the radius {settings.radius:g}"
        yield remark(f"{what}; {own}", refused=False)


def _neighbours_found(runs: Sequence[_Run]) -> float | None:
    """Return the share of the neighbours along tracks that are candidates; None if no truth is known."""
    found = wanted = 0
    for run in runs:
        if run.sample.truth is not None:
            n, true = len(run.sample.hits), true_edges(run.sample.truth)
            keys = [edges.max(axis=0) * n + edges.min(axis=0) for edges in (true, run.candidates)]
            found, wanted = found + int(np.isin(*keys).sum()), wanted + true.shape[1]
    return found / wanted if wanted else None


def _score_remarks(
    name: str, answers: Sequence[_Answer], settings: PipelineSettings, *, cut: float, option: str, stated: bool
) -> Iterator[Remark]:
    """Yield at most one remark, the most serious, on an edge network's scores for all samples together."""

    def remark(what: str, *, refused: bool = True) -> Remark:
        return Remark(model=name, what=what, refused=refused)

    values = np.concatenate([answer.values for answer in answers])
    if values.size < _FEW:
        return
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        yield remark(f"gives a NaN or an infinity for {bad} of {values.size} edges; choose another file")
        return
    low, high = float(values.min()), float(values.max())
    between = f"all {values.size} answers are between {low:.4g} and {high:.4g}"
    passing = int(accepted(values, cut=cut, scores=settings.scores).sum())
    apart = _chance(answers)
    probable = low >= 0.0 and high <= 1.0
    if high - low <= 1e-6 * max(1.0, abs(high)):
        yield remark(f"gives {high:.4g} for every edge; choose another file")
    elif settings.scores == "probabilities" and not probable:
        yield remark(
            f"does not give probabilities: answers are between {low:.4g} and {high:.4g}; use --scores logits if "
            "both networks give logits, else put a sigmoid into this one"
        )
    elif settings.scores == "logits" and probable:
        what = f"seems to give probabilities: {between}; say which with --scores probabilities or --scores logits"
        yield remark(what, refused=not stated)
    elif apart is not None and apart < _FLIPPED:
        what = f"scores pairs of one track below others in {1 - apart:.0%} of cases"
        yield remark(
            f"{what}; is its sign flipped, or does it want other features (--features FILE)? If not, repeat the check "
            "with events of your detector (--events FOLDER)"
        )
    elif passing in (0, values.size):
        kept = "no" if not passing else "every"
        own = f"check {option} and --scores, or repeat the check with events of your detector (--events FOLDER)"
        yield remark(f"lets {kept} edge pass the cut {cut:g}: {between}; {own}")
    elif apart is not None and apart < _GUESSING:
        what = f"separates pairs of one track from others hardly better than chance ({apart:.0%}) on simulated events"
        yield remark(f"{what}; repeat the check with events of your detector (--events FOLDER)", refused=False)
    elif settings.scores == "logits" and high <= 0.0:
        yield remark(f"seems to give logarithms of probabilities: {between}; logits are expected", refused=False)


def _chance(answers: Sequence[_Answer]) -> float | None:
    """Return how often an edge of one track scores above another edge (the area under the ROC curve), or None."""
    known = [answer for answer in answers if answer.same_track is not None]
    if not known:
        return None
    values = np.concatenate([answer.values for answer in known])
    same = np.concatenate([answer.same_track for answer in known])
    if min(same.sum(), (~same).sum()) < _FEW:
        return None
    _, rank, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # edges of equal score get their mean rank
    total, n = middle[rank.reshape(-1)][same].sum(), int(same.sum())
    return float((total - n * (n + 1) / 2) / (n * (len(same) - n)))
