"""Steps that measure one process: first events, events per second, time per stage, profile of one event, memory."""

from __future__ import annotations

import functools
import importlib
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, Float32
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.pipeline import Pipeline
from gpu_lane.base import SMALL, WITHIN, Lane, event, milliseconds, rate, say
from gpu_lane.networks import write_networks

#: Categories of rows in a trace of torch's profiler: work of the device, and calls of CUDA.
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_ASKED = ("cuda_runtime", "cuda_driver")
_KINDS = {"launches": "Launch", "synchronisations": "Synchronize", "copies": "Memcpy", "allocations": "Malloc|MemAlloc"}


def cold(lane: Lane) -> None:
    """Give a new process events of different sizes: a new shape must not cause a compilation."""
    begin = time.perf_counter()
    pipeline = lane.load()
    loaded = time.perf_counter() - begin
    events = [event(900 + 37 * k) for k in range(4 if lane.quick else 40)]

    def once() -> list[float]:
        return [round(milliseconds(lane, lambda hits=hits: pipeline.find_tracks(hits)), 1) for hits in events]

    first = once()
    once()
    steady = once()
    late = len(events) // 2
    say(
        "cold",
        load_s=round(loaded, 2),
        first_ms=first,
        last_median_ms=statistics.median(first[-late:]),
        steady_median_ms=statistics.median(steady[-late:]),
    )


def direct(lane: Lane) -> None:
    """Measure events per second without a server, and each stage alone, for the shipped and for large networks."""
    loads = ((SMALL, 2),) if lane.quick else ((SMALL, 16), (10_000, 4), (50_000, 1))
    for name, pipeline in _pipelines(lane):
        for hits, number in loads:
            events = [event(hits, seed) for seed in range(number)]
            for one in events * (2 if hits >= 50_000 else 3):
                pipeline.find_tracks(one)
            lane.finish()
            found = pipeline.stages(events[0])
            say(
                "direct",
                networks=name,
                hits=hits,
                candidates=found.candidates.shape[1],
                edges=found.edges.shape[1],
                events_per_s=round(rate(pipeline.find_tracks, events, lane.seconds), 1),
                ms_of_each_stage_alone=_stages_alone(lane, pipeline, events[:2]),
            )


def _pipelines(lane: Lane) -> Iterable[tuple[str, Pipeline]]:
    yield "shipped", lane.load()
    yield "original size", lane.load(write_networks(lane.folder / "original", lane.repository))


def _stages_alone(lane: Lane, pipeline: Pipeline, events: list[Float32]) -> dict[str, float]:
    """Return the median milliseconds of each stage, with a wait for the device after each."""
    spent: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[..., Any], *inputs: Any) -> Any:
        found: list[Any] = []
        spent.setdefault(stage, []).append(milliseconds(lane, lambda: found.append(function(*inputs))))
        return found[0]

    with torch.inference_mode():
        for given in events * 3:
            hits = timed("copy", lane.there, given)
            embedding = timed("embed", pipeline.embed, hits)
            candidates = timed("frnn", _candidates, embedding)
            scores = timed("filter", pipeline.filter, hits, candidates)
            edges = timed("applyfilter", _kept, candidates, scores)
            scores = timed("gnn", pipeline.gnn, hits, edges)
            timed("components", _labels, edges, scores, len(hits))
    return {stage: round(statistics.median(values), 3) for stage, values in spent.items()}


def _candidates(embedding: Any) -> Any:
    return fixed_radius_edges(embedding, **WITHIN)


def _kept(edges: Any, scores: Any) -> Any:
    return apply_filter(edges, scores, cut=DEFAULT_SETTINGS.filter_cut)


def _labels(edges: Any, scores: Any, hits: int) -> Any:
    return label_components(edges, scores.reshape(-1), cut=DEFAULT_SETTINGS.gnn_cut, n_hits=hits).cpu()


def one_event(lane: Lane) -> None:
    """Profile one event: launches, synchronisations, copies, and the share of time in which the device is busy."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if lane.on_gpu else [])]
    hits = event(SMALL)
    for name, pipeline in _pipelines(lane):
        find = functools.partial(pipeline.find_tracks, hits)
        for _ in range(3 if lane.quick else 20):
            find()
        with profile(activities=activities):  # the profiler's own warm-up
            find()
        plain = statistics.median(milliseconds(lane, find) for _ in range(2 if lane.quick else 7))
        with profile(activities=activities) as seen:
            watched = milliseconds(lane, find)
        trace = lane.folder / f"trace-{name.replace(' ', '-')}.json"
        seen.export_chrome_trace(str(trace))
        facts = read_trace(trace)
        if lane.on_gpu:
            facts["busy_share"] = round(facts["busy_ms"] / plain, 3)
        say("profile", networks=name, hits=len(hits), ms=round(plain, 2), ms_profiled=round(watched, 2), **facts)


def read_trace(file: Path) -> dict[str, Any]:
    """Return figures of the device from a trace of torch's profiler: counts of calls, busy time, longest kernels."""
    rows = [
        row for row in json.loads(file.read_text(errors="replace"), strict=False)["traceEvents"] if row.get("ph") == "X"
    ]
    asked = Counter(row["name"] for row in rows if row.get("cat") in _ASKED)
    work = [row for row in rows if row.get("cat") in _ON_DEVICE]
    longest: Counter[str] = Counter()
    for row in work:
        longest[row["name"][:80]] += row["dur"]
    return {
        **{kind: sum(n for name, n in asked.items() if re.search(part, name)) for kind, part in _KINDS.items()},
        "calls": dict(asked.most_common(12)),
        "kernels": sum(row["cat"] == "kernel" for row in work),
        "busy_ms": round(_covered([(row["ts"], row["ts"] + row["dur"]) for row in work]) / 1000, 3),
        "longest_us": {name: round(spent, 1) for name, spent in longest.most_common(8)},
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the total time that is covered by at least one of the spans."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def memory(lane: Lane) -> None:
    """Measure the device memory that one event of each size takes."""
    cupy = importlib.import_module("cupy")
    pipeline = lane.load()
    for hits in lane.sizes:
        given = event(hits)
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
        torch.cuda.reset_peak_memory_stats(lane.device)
        pipeline.find_tracks(given)
        lane.finish()
        free, total = torch.cuda.mem_get_info(lane.device)
        say(
            "memory",
            hits=hits,
            torch_peak_mb=torch.cuda.max_memory_allocated(lane.device) >> 20,
            torch_held_mb=torch.cuda.max_memory_reserved(lane.device) >> 20,
            cupy_held_mb=cupy.get_default_memory_pool().total_bytes() >> 20,
            device_used_mb=(total - free) >> 20,
        )
