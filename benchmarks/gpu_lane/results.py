"""Steps that compare results: kernels bit by bit, the whole pipeline, other streams and CuPy arrays."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, Float32, Int64
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.pipeline import Stages
from exatrkx_hpc.tracking.scoring.agreement import hits_in_other_tracks
from gpu_lane.base import CROWDED, SMALL, WITHIN, Lane, event, milliseconds, say, stages_of_the_cpu

#: Tolerance of lengths, relative to the radius: two devices compute the embedding with float32 sums in another order.
_ROUNDING = 1e-4
_UPPER, _LOWER = 32, 0xFFFFFFFF


def environment(lane: Lane) -> None:
    """Print the installed versions and the device of the steps."""
    facts: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    say("environment", **facts, device=lane.device, kernel=platform.release())
    if not lane.on_gpu:
        return
    one = torch.cuda.get_device_properties(lane.device)
    free, total = torch.cuda.mem_get_info(lane.device)
    say(
        "environment",
        gpu=one.name,
        multiprocessors=one.multi_processor_count,
        capability=list(torch.cuda.get_device_capability(lane.device)),
        total_mb=total >> 20,
        free_mb=free >> 20,
        cuda=torch.version.cuda,
        tf32=torch.backends.cuda.matmul.allow_tf32,
    )
    import cupy

    say(
        "environment",
        cupy=cupy.__version__,
        nvrtc=list(cupy.cuda.nvrtc.getVersion()),
        driver=cupy.cuda.runtime.driverGetVersion(),
    )


def kernels(lane: Lane) -> None:
    """Give the same arrays to the CPU and to the device: edges, selected edges and labels must be equal bit by bit."""
    for hits in lane.sizes:
        stages = stages_of_the_cpu(lane, hits)
        _same_edges(lane, hits, stages)
    _ties(lane)
    _smallest(lane)


def _same_edges(lane: Lane, hits: int, stages: Stages) -> None:
    embedding = lane.there(stages.embedding)
    found: list[Any] = []
    times = [milliseconds(lane, lambda: found.append(fixed_radius_edges(embedding, **WITHIN))) for _ in range(2)]
    candidates, logits = lane.there(stages.candidates), lane.there(stages.filter_logits)
    kept = apply_filter(candidates, logits, cut=DEFAULT_SETTINGS.filter_cut)
    labels = label_components(
        lane.there(stages.edges), lane.there(stages.gnn_logits), cut=DEFAULT_SETTINGS.gnn_cut, n_hits=hits
    )
    equal = {
        "edges": _equal(found[0], stages.candidates),
        "filter": _equal(kept, stages.edges),
        "labels": _equal(labels, stages.labels),
    }
    crowd = most_neighbours(stages.embedding, stages.candidates)
    say(
        "kernels",
        hits=hits,
        candidates=stages.candidates.shape[1],
        most_neighbours=crowd,
        equal=all(equal.values()),
        **{f"{name}_equal": value for name, value in equal.items()},
        first_ms=round(times[0], 2),
        again_ms=round(times[1], 2),
    )
    if hits >= CROWDED and crowd <= DEFAULT_SETTINGS.max_neighbours:
        raise AssertionError(f"the event of {hits} hits is not crowded: {crowd} neighbours at most")


def _ties(lane: Lane) -> None:
    """Put a seventh of the hits in one place, and keep fewer neighbours than there are, so that numbers decide."""
    embedding = stages_of_the_cpu(lane, lane.sizes[1]).embedding[:2000].copy()
    embedding[::7] = embedding[0]
    for limit in (20, 500):
        ours = fixed_radius_edges(embedding, radius=3.0, max_neighbours=limit)
        theirs = fixed_radius_edges(lane.there(embedding), radius=3.0, max_neighbours=limit)
        say("kernels", case=f"ties, {limit} neighbours", edges=ours.shape[1], equal=_equal(theirs, ours))


def _smallest(lane: Lane) -> None:
    for hits in (0, 1, 2):
        embedding = np.zeros((hits, 8), np.float32)
        ours = fixed_radius_edges(embedding, **WITHIN)
        theirs = fixed_radius_edges(lane.there(embedding), **WITHIN)
        scores = np.full(ours.shape[1], 9, np.float32)
        labels = label_components(lane.there(ours), lane.there(scores), cut=0.75, n_hits=hits)
        equal = _equal(theirs, ours) and _equal(labels, label_components(ours, scores, cut=0.75, n_hits=hits))
        say("kernels", case=f"{hits} hits", edges=ours.shape[1], equal=equal)


def agreement(lane: Lane) -> None:
    """Run the pipeline on CPU and device, where only edges at a limit may differ by rounding; then run it again."""
    pipeline = lane.load()
    for hits in lane.sizes:
        ours = stages_of_the_cpu(lane, hits)
        theirs, again = pipeline.stages(event(hits)), pipeline.stages(event(hits))
        say(
            "agreement",
            hits=hits,
            embedding_differs_by=float(np.abs(ours.embedding - theirs.embedding).max(initial=0)),
            **edge_differences(ours.candidates, theirs.candidates, ours.embedding),
            tracks=[int(one.labels.max(initial=-1)) + 1 for one in (ours, theirs)],
            hits_in_other_tracks=hits_in_other_tracks(ours.labels, theirs.labels),
            repeats=all(np.array_equal(getattr(theirs, name), array) for name, array in vars(again).items()),
            hits_in_other_tracks_again=hits_in_other_tracks(theirs.labels, again.labels),
        )


def streams(lane: Lane) -> None:
    """Run in streams other than the default one, and with CuPy arrays in and out."""
    import cupy

    pipeline, hits = lane.load(), event(SMALL)
    want = pipeline.stages(hits)
    repeats = 5 if lane.quick else 50

    def off(labels: Any) -> int:
        return hits_in_other_tracks(want.labels, labels)

    with torch.cuda.stream(torch.cuda.Stream(lane.device)):
        tensors = [pipeline.find_tracks(lane.there(hits)) for _ in range(repeats)]
        in_torch = max(off(labels.cpu().numpy()) for labels in tensors)
    index = torch.device(lane.device).index or 0
    with cupy.cuda.Device(index), cupy.cuda.Stream(non_blocking=True):
        arrays = [pipeline.find_tracks(cupy.asarray(hits)) for _ in range(repeats)]
        in_cupy = max(off(labels.get()) for labels in arrays)
        # The kernels alone must give the same result bit by bit, because nothing is rounded here.
        edges = fixed_radius_edges(cupy.asarray(want.embedding), **WITHIN)
        same_edges = _equal(edges.get(), want.candidates)
    say(
        "streams",
        equal=same_edges and in_torch == in_cupy == 0,
        torch_hits_in_other_tracks=in_torch,
        cupy_hits_in_other_tracks=in_cupy,
        cupy_edges_equal=same_edges,
        cupy_stays_cupy=all(isinstance(one, cupy.ndarray) for one in arrays),
    )


# --- how two results differ -----------------------------------------------------------------------------


def edge_differences(first: Int64, second: Int64, embedding: Float32) -> dict[str, int]:
    """Count the edges in both lists, and those in only one: at a limit, where rounding decides, or `beyond` it.

    There are two limits: the radius, and the distance of the last neighbour that a crowded hit keeps.
    """
    ours, theirs = ((edges[0] << _UPPER) | edges[1] for edges in (first, second))
    common = np.intersect1d(ours, theirs, assume_unique=True)
    differing = np.setxor1d(ours, theirs, assume_unique=True)
    larger, smaller = differing >> _UPPER, differing & _LOWER
    places = embedding.astype(np.float64)
    length = np.linalg.norm(places[larger] - places[smaller], axis=1)
    slack = _ROUNDING * DEFAULT_SETTINGS.radius
    at_radius = np.abs(length - DEFAULT_SETTINGS.radius) <= slack
    at_limit = np.zeros(len(differing), dtype=bool)
    for hit in np.unique(larger[~at_radius]):
        of_hit = (larger == hit) & ~at_radius
        at_limit[of_hit] = np.abs(length[of_hit] - _last_neighbour(places, int(hit), slack)) <= slack
    return {
        "common": len(common),
        "at_radius": int(at_radius.sum()),
        "at_limit": int(at_limit.sum()),
        "beyond": int((~at_radius & ~at_limit).sum()),
    }


def _last_neighbour(places: Any, hit: int, slack: float) -> float:
    """Return the distance of the last neighbour that a crowded hit keeps; infinity if the hit is not crowded."""
    distance = np.linalg.norm(places - places[hit], axis=1)
    distance[hit] = np.inf
    if np.count_nonzero(distance <= DEFAULT_SETTINGS.radius + slack) <= DEFAULT_SETTINGS.max_neighbours:
        return float("inf")
    last = DEFAULT_SETTINGS.max_neighbours - 1
    return float(np.partition(distance, last)[last])


def most_neighbours(embedding: Float32, candidates: Int64) -> int:
    """Return the number of neighbours within the radius of the most crowded hit, kept or not; 0 without an edge."""
    if not candidates.shape[1]:
        return 0
    degree = np.bincount(candidates.reshape(-1), minlength=len(embedding))
    places = embedding.astype(np.float64)
    square = DEFAULT_SETTINGS.radius**2
    crowded = np.argsort(degree)[-20:]
    return max(int(np.count_nonzero(((places - places[hit]) ** 2).sum(axis=1) <= square)) - 1 for hit in crowded)


def _equal(result: Any, expected: Any) -> bool:
    array = result.cpu().numpy() if isinstance(result, torch.Tensor) else result
    return bool(array.dtype == expected.dtype and np.array_equal(array, expected))
