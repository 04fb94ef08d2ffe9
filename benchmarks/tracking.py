"""Measure the tracking kernels and the whole pipeline on one CPU thread, each against a rival in the same run.

- frnn against blocked `torch.cdist`, and against SciPy's cKDTree (`query_pairs`);
- connected components against networkx;
- the direct pipeline, stage by stage, against a plain composition: TorchScript modules as `torch.jit.load` gives
  them, `query_pairs`, a sigmoid, `csgraph`;
- the peak memory of the direct pipeline for each number of hits, each in its own process.

Rivals take turns. A ratio is the median over the turns of rival / ours, so ours is faster if it is above 1. It is taken
from CPU time, which other load changes least; the wall time is also recorded. The plain composition does not limit the
neighbours of a hit. If this or rounding at a cut changes its tracks, `other_hits` counts the hits. Example:

    python benchmarks/tracking.py --json tracking.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import run
from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, NETWORK_NAMES, Float32, Int64
from exatrkx_hpc.tracking.filtering import accepted, apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.pipeline import Pipeline, Stages
from exatrkx_hpc.tracking.scoring.agreement import compare_edges, hits_in_other_tracks
from exatrkx_hpc.tracking.simulation import synthetic
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events

STAGES = ("embed", "frnn", "filter", "applyfilter", "gnn", "components")
_SEED = 31_415
_CDIST_ROWS = 2048
_SETTINGS = DEFAULT_SETTINGS
_WITHIN: dict[str, Any] = {"radius": _SETTINGS.radius, "max_neighbours": _SETTINGS.max_neighbours}


@dataclass(frozen=True, kw_only=True)
class Load:
    """Events of one kind, and the number of turns; rivals that are slow on large events have fewer turns."""

    name: str
    events: list[Float32]
    repeats: int
    slow_repeats: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The time of one rival in one turn: wall time and CPU time (s)."""

    wall: float
    processor: float


def main() -> None:
    """Measure, print a table, and write the figures as JSON if requested."""
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, but it is served
    if arguments.memory_of is not None:
        print(json.dumps(_memory(arguments.repository, arguments.memory_of)))
        return
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0], "threads": torch.get_num_threads(), "events": {}}
    for load in _loads(arguments):
        figures["events"][load.name] = _measure(arguments.repository, load)
        _show(load.name, figures["events"][load.name])
    figures["memory"] = [_memory_apart(arguments, n) for n in arguments.memory]
    _show_memory(figures["memory"])
    figures["ratios"] = {
        f"{name}: {rival}": part[rival]["ratio"]
        for name, part in figures["events"].items()
        for rival in ("frnn/cdist", "frnn/cKDTree", "components/networkx", "direct/plain")
        if rival in part
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=asset("model_repos/exatrkx"), help="the model repository")
    parser.add_argument("--hits", type=int, nargs="*", default=[10_000, 50_000], help="sizes of synthetic events")
    parser.add_argument("--memory", type=int, nargs="*", default=[1_000, 10_000, 20_000, 50_000], help="sizes to weigh")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each rival")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="small events and one turn, to see that it works")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.hits, arguments.memory, arguments.repeats = [1_000], [500], 1
    return arguments


def _loads(arguments: argparse.Namespace) -> list[Load]:
    """Return the reference events, if they are available, and one synthetic event of each size."""
    loads = []
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if reference:
        events = [read_hits(event.path) for event in find_events(Path(reference, "exatrkx", "events_scaled"))]
        few = events[:4] if arguments.quick else events
        loads.append(Load(name="reference", events=few, repeats=arguments.repeats, slow_repeats=arguments.repeats))
    for hits in arguments.hits:
        large = hits > 20_000
        repeats = 1 if large else arguments.repeats
        slow = 1 if large else min(3, arguments.repeats)
        loads.append(Load(name=f"{hits} hits", events=[_event(hits)], repeats=repeats, slow_repeats=slow))
    return loads


def _event(hits: int) -> Float32:
    """Return one synthetic event of `hits` hits."""
    tracks = hits // 10
    return synthetic.generate_event(np.random.default_rng([_SEED, hits]), n_tracks=tracks).hits[:hits]


# --- the measurement ------------------------------------------------------------------------------------


def _measure(repository: Path, load: Load) -> dict[str, Any]:
    """Return all figures of one kind of events, in milliseconds per event."""
    direct, plain = Pipeline.load(repository), _Plain(repository)
    stages = [direct.stages(hits) for hits in load.events]
    plain.find_tracks(load.events[0][:200])
    figures: dict[str, Any] = {
        "number": len(load.events),
        "mean_hits": statistics.mean(len(hits) for hits in load.events),
        "mean_candidates": statistics.mean(one.candidates.shape[1] for one in stages),
        "mean_edges": statistics.mean(one.edges.shape[1] for one in stages),
    }
    embeddings = [one.embedding for one in stages]
    _check_edges(stages)
    few, many = load.slow_repeats, load.repeats
    figures["frnn/cdist"] = _compare(_ours, _cdist, embeddings, few)
    figures["frnn/cKDTree"] = _compare(_ours, _query_pairs, embeddings, few)
    figures["components/networkx"] = _compare(_our_components, _networkx, stages, few)
    figures["direct/plain"] = _compare(
        direct.find_tracks, plain.find_tracks, load.events, many, other=hits_in_other_tracks
    )
    figures["stages"] = _stages(direct, load)
    return figures


def _compare(
    ours: Callable[[Any], Any],
    rival: Callable[[Any], Any],
    inputs: Sequence[Any],
    repeats: int,
    *,
    other: Callable[[Any, Any], int] | None = None,
) -> dict[str, Any]:
    """Let the two take turns; return milliseconds per event of each, and how many times slower the rival is.

    `other` counts the differences between two results.
    """
    turns, differing = [], 0
    for _ in range(repeats):
        mine, our_results = _turn(ours, inputs)
        theirs, their_results = _turn(rival, inputs)
        turns.append((mine, theirs))
        differing = sum(map(other, our_results, their_results)) if other else 0
    each = 1000 / len(inputs)
    return {
        "ours_ms": each * statistics.median(mine.wall for mine, _ in turns),
        "rival_ms": each * statistics.median(theirs.wall for _, theirs in turns),
        "ours_processor_ms": each * statistics.median(mine.processor for mine, _ in turns),
        "rival_processor_ms": each * statistics.median(theirs.processor for _, theirs in turns),
        "wall_ratio": statistics.median(theirs.wall / mine.wall for mine, theirs in turns),
        "ratio": statistics.median(theirs.processor / mine.processor for mine, theirs in turns),
        "turns": repeats,
        **({"other_hits": differing} if other else {}),
    }


def _turn(function: Callable[[Any], Any], inputs: Sequence[Any]) -> tuple[Turn, list[Any]]:
    wall, processor = time.perf_counter(), time.process_time()
    results = [function(one) for one in inputs]
    return Turn(wall=time.perf_counter() - wall, processor=time.process_time() - processor), results


def _stages(pipeline: Pipeline, load: Load) -> dict[str, dict[str, float]]:
    """Return the CPU milliseconds per event and the share of each stage of the direct pipeline."""
    turns = [np.sum([_staged(pipeline, hits) for hits in load.events], axis=0) for _ in range(load.repeats)]
    middle = np.median(turns, axis=0) * 1000 / len(load.events)
    shares = middle / middle.sum()
    return {
        name: {"processor_ms": float(ms), "share": float(share)}
        for name, ms, share in zip(STAGES, middle, shares, strict=True)
    }


def _staged(pipeline: Pipeline, hits: Float32) -> list[float]:
    """Run the stages as the pipeline does, and return the CPU seconds of each stage."""
    clock = [time.process_time()]

    def done(result: Any) -> Any:
        clock.append(time.process_time())
        return result

    with torch.inference_mode():
        features = torch.from_numpy(hits)
        embedding = done(pipeline.embed(features))
        candidates = done(fixed_radius_edges(embedding, **_WITHIN))
        scores = done(pipeline.filter(features, candidates))
        edges = done(apply_filter(candidates, scores, cut=_SETTINGS.filter_cut))
        scores = done(pipeline.gnn(features, edges))
        done(label_components(edges, scores, cut=_SETTINGS.gnn_cut, n_hits=len(hits)))
    return [float(step) for step in np.diff(clock)]


def _check_edges(stages: Sequence[Stages]) -> None:
    """Stop if the rivals of frnn find other edges, because then the comparison is meaningless."""
    smallest = min(stages, key=lambda one: len(one.embedding))
    degree = np.bincount(smallest.candidates.reshape(-1), minlength=1)
    for rival in (_cdist, _query_pairs):
        found = compare_edges(
            smallest.candidates, rival(smallest.embedding), smallest.embedding, radius=_SETTINGS.radius, tolerance=1e-3
        )
        if not found.agree and degree.max() < _SETTINGS.max_neighbours:
            raise SystemExit(f"{rival.__name__} finds {found.different} other edges")


# --- the rivals -----------------------------------------------------------------------------------------


def _cdist(embedding: Float32) -> Int64:
    """Search neighbours by blocks of rows of the distance matrix."""
    places, found = torch.from_numpy(embedding), []
    for start in range(0, len(places), _CDIST_ROWS):
        block = torch.cdist(places[start : start + _CDIST_ROWS], places) <= _SETTINGS.radius
        i, j = block.nonzero(as_tuple=True)
        keep = i + start > j
        found.append(torch.stack([i[keep] + start, j[keep]]))
    edges: Int64 = torch.cat(found, dim=1).numpy()
    return edges


def _query_pairs(embedding: Float32) -> Int64:
    """Search neighbours with SciPy's tree."""
    pairs = cKDTree(embedding).query_pairs(_SETTINGS.radius, output_type="ndarray")
    return np.stack([pairs[:, 1], pairs[:, 0]])


def _ours(embedding: Float32) -> Int64:
    return fixed_radius_edges(embedding, **_WITHIN)


def _our_components(stages: Stages) -> None:
    label_components(stages.edges, stages.gnn_logits, cut=_SETTINGS.gnn_cut, n_hits=len(stages.embedding))


def _networkx(stages: Stages) -> list[set[int]]:
    """Find components with networkx, from the same edges and scores."""
    edges = stages.edges[:, accepted(stages.gnn_logits, cut=_SETTINGS.gnn_cut)]
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(stages.embedding)))
    graph.add_edges_from(edges.T.tolist())
    return list(networkx.connected_components(graph))


class _Plain:
    """A plain pipeline from standard libraries, without optimisations."""

    def __init__(self, repository: Path) -> None:
        self.embed, self.filter, self.gnn = (
            torch.jit.load(str(repository / name / "1" / "model.pt"), map_location="cpu").eval()
            for name in NETWORK_NAMES
        )

    def find_tracks(self, hits: Float32) -> Int64:
        edges = _query_pairs(self._run(self.embed, hits))
        edges = edges[:, _sigmoid(self._run(self.filter, hits, edges).reshape(-1)) > _SETTINGS.filter_cut]
        first, second = edges[:, _sigmoid(self._run(self.gnn, hits, edges).reshape(-1)) > _SETTINGS.gnn_cut]
        graph = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(len(hits), len(hits)))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def _run(self, network: Any, *arrays: Any) -> Float32:
        with torch.inference_mode():
            answer: Float32 = network(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)).numpy()
        return answer


def _sigmoid(logits: Float32) -> Float32:
    scores: Float32 = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return scores


# --- memory ---------------------------------------------------------------------------------------------


def _memory_apart(arguments: argparse.Namespace, hits: int) -> dict[str, float]:
    argv = [sys.executable, __file__, "--repository", str(arguments.repository), "--memory-of", str(hits)]
    done = run(argv, env=dict(os.environ), timeout=300)
    if done.returncode:
        raise SystemExit(f"the process for {hits} hits failed: {done.complaint}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _memory(repository: Path, hits: int) -> dict[str, float]:
    """Return the peak memory in MB that one event adds to this process, and the size of an N x N float32 matrix."""
    pipeline = Pipeline.load(repository)
    pipeline.find_tracks(_event(100))
    event = _event(hits)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which would be that of loading the networks
    before = _kilobytes("VmRSS")
    candidates = pipeline.stages(event).candidates.shape[1]
    after = _kilobytes("VmHWM")
    return {
        "hits": len(event),
        "candidates": candidates,
        "added_mb": (after - before) / 1024,
        "process_mb": after / 1024,
        "matrix_mb": 4e-6 * len(event) ** 2,
    }


def _kilobytes(name: str) -> int:
    """Return a memory figure (kB) of this process. Not ru_maxrss: a child begins with the peak of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# --- the table ------------------------------------------------------------------------------------------


def _show(name: str, figures: dict[str, Any]) -> None:
    hits, candidates, edges = (figures[key] for key in ("mean_hits", "mean_candidates", "mean_edges"))
    print(f"\n{name}: {figures['number']} events, {hits:.0f} hits, {candidates:.0f} candidates, {edges:.0f} edges each")
    print(f"  {'':22} {'ours':>10} {'rival':>10} {'ratio':>8}   (ms an event; ratio of processor time)")
    for rival in (key for key in figures if "/" in key):
        one = figures[rival]
        print(f"  {rival:22} {one['ours_ms']:10.2f} {one['rival_ms']:10.2f} {one['ratio']:8.2f}")
    shares = "  ".join(f"{stage} {one['share']:.1%}" for stage, one in figures["stages"].items())
    print(f"  stages: {shares}")
    print(f"  hits on other tracks than in the plain composition: {figures['direct/plain']['other_hits']}")


def _show_memory(weights: Sequence[dict[str, float]]) -> None:
    print(f"\n  {'hits':>8} {'candidates':>11} {'added MB':>10} {'N x N MB':>10}")
    for one in weights:
        print(f"  {one['hits']:8.0f} {one['candidates']:11.0f} {one['added_mb']:10.1f} {one['matrix_mb']:10.1f}")


if __name__ == "__main__":
    main()
