"""Steps with the fused model's `execute()`, called as Triton's Python backend calls it: its rate, and invalid input."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import queue
import statistics
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exatrkx_hpc.tracking import serving
from exatrkx_hpc.tracking.constants import DEFAULT_NETWORKS, Float32, Int64
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.inference import load_network
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.scoring.agreement import hits_in_other_tracks
from exatrkx_hpc.tracking.serving import Refused, Stage, TorchScriptStage
from exatrkx_hpc.tracking.serving_fused import FusedStage
from gpu_lane import triton_api
from gpu_lane.base import SMALL, WITHIN, Lane, event, rate, say
from gpu_lane.networks import write_networks

_TURNS = 3
#: Hits that may change tracks from run to run: a GPU sums in any order, and a score may be within rounding of a cut.
_FEW = 4
#: Timeout (s) of a process, more than it needs to load and to warm up.
_PATIENCE = 90.0
#: Time (s) in which a process must end after it has reported its rate.
_ENDING = 10.0


def fused_stage(lane: Lane, *, networks: str = "..") -> FusedStage:
    """Return the fused model as Triton loads it on the lane's device; `networks` is its parameter of that name."""
    stage = FusedStage()
    config = {
        "parameters": {"networks": {"string_value": networks}},
        "input": [{"name": "FEATURES", "data_type": "TYPE_FP32", "dims": [-1, 3]}],
        "output": [{"name": "LABELS", "data_type": "TYPE_INT64", "dims": [-1]}],
    }
    _initialize(lane, stage, "exatrkx_fused", config)
    return stage


def _filter_stage(lane: Lane) -> TorchScriptStage:
    stage = TorchScriptStage()
    config = {
        "parameters": {},
        "input": [{"name": "INPUT__0", "dims": [-1, 3]}, {"name": "INPUT__1", "dims": [2, -1]}],
        "output": [{"name": "OUTPUT__0", "dims": [-1, 1]}],
    }
    _initialize(lane, stage, "filter", config)
    return stage


def _initialize(lane: Lane, stage: Stage, model: str, config: dict[str, Any]) -> None:
    triton_api.install()
    stage.initialize(
        {
            "model_name": model,
            "model_config": json.dumps(config),
            "model_repository": str(lane.repository / model),
            "model_version": "1",
            "model_instance_kind": "GPU" if lane.on_gpu else "CPU",
            "model_instance_device_id": lane.device.partition(":")[2] or "0",
        }
    )


def ask(stage: Stage, **arrays: np.ndarray) -> np.ndarray:
    """Return the first output of one request; raises Refused for an error."""
    try:
        (response,) = stage.execute([triton_api.Request(**arrays)])
    except serving.Refused as error:  # Triton sends its message to the client
        raise Refused(str(error)) from error
    return _answer(response)


def _answer(response: triton_api.InferenceResponse) -> np.ndarray:
    error = response.error()
    if error is not None:
        raise Refused(str(error))
    array: np.ndarray = torch.from_dlpack(response.output_tensors()[0]).cpu().numpy()
    return array


# --- how fast -------------------------------------------------------------------------------------------


def fused(lane: Lane) -> None:
    """Compare the fused model with direct inference in one process, in turns; then run 1, 2 and 4 processes."""
    stage, pipeline = fused_stage(lane), lane.load()
    events = [event(SMALL, seed) for seed in range(4 if lane.quick else 16)]
    for hits in events * 2:
        labels = ask(stage, FEATURES=hits)
        expected: Int64 = pipeline.find_tracks(hits)
    turns = [_turn(lane, stage, pipeline, events) for _ in range(_TURNS)]
    say(
        "fused",
        hits=SMALL,
        events_per_s=round(statistics.median(ours for ours, _ in turns), 1),
        direct_events_per_s=round(statistics.median(theirs for _, theirs in turns), 1),
        ratio=round(statistics.median(ours / theirs for ours, theirs in turns), 3),
        hits_in_other_tracks=hits_in_other_tracks(expected, labels),
    )
    for number in (2,) if lane.quick else (1, 2, 4):
        say("fused", processes=number, events_per_s=[round(one, 1) for one in _side_by_side(lane, number)])


def _turn(lane: Lane, stage: FusedStage, pipeline: Pipeline, events: list[Float32]) -> tuple[float, float]:
    """Return events per second of the fused model and of direct inference, one after the other."""
    seconds = lane.seconds / _TURNS
    return rate(lambda hits: ask(stage, FEATURES=hits), events, seconds), rate(pipeline.find_tracks, events, seconds)


def _side_by_side(lane: Lane, number: int) -> list[float]:
    """Return events per second of each of `number` processes that work at the same time."""
    context = multiprocessing.get_context("spawn")
    results, begin = context.Queue(), context.Barrier(number)
    processes = [context.Process(target=_serve, args=(lane, begin, results), daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        rates = [results.get(timeout=_PATIENCE) for _ in processes]
    except queue.Empty as error:
        raise TimeoutError(f"of {number} processes not all were done within {_PATIENCE:g} s") from error
    for process in processes:
        process.join(_ENDING)
    failed = [one for one in rates if isinstance(one, str)]
    if failed:  # the others report only that they waited for the failed process
        raise RuntimeError(min(failed, key=lambda one: one.startswith("BrokenBarrierError")))
    return rates


def _serve(lane: Lane, begin: Barrier, results: Any) -> None:
    """Serve events in this process; put the rate or the error into `results`."""
    try:
        torch.set_num_threads(1)
        stage = fused_stage(lane)
        events = [event(SMALL, seed) for seed in range(4 if lane.quick else 16)]
        for hits in events * 2:
            ask(stage, FEATURES=hits)
        begin.wait(_PATIENCE)
        results.put(rate(lambda hits: ask(stage, FEATURES=hits), events, lane.seconds))
    except Exception as error:
        begin.abort()
        results.put(f"{type(error).__name__}: {error}")


# --- invalid input --------------------------------------------------------------------------------------


def invalid(lane: Lane) -> None:
    """Send invalid input: each case gets an error of one line, and the next request is answered."""
    stage, good = fused_stage(lane), event(500)
    expected = ask(stage, FEATURES=good)
    for case, hits in _bad_hits().items():
        _refused("invalid", case, lambda hits=hits: ask(stage, FEATURES=hits))
        _answered(case, hits_in_other_tracks(expected, ask(stage, FEATURES=good)))
    empty = ask(stage, FEATURES=good[:0])
    say("invalid", case="0 hits", ok=empty.shape == (0,) and empty.dtype == np.int64)
    _refused("invalid", "edges out of range, to the filter stage", lambda: _wild_edges_to_a_stage(lane, good))
    if lane.on_gpu:
        wide = np.zeros((3, 65), np.float32)
        _refused("invalid", "65 columns", lambda: fixed_radius_edges(lane.there(wide), **WITHIN))
        _refused("invalid", "a network of 65 columns", lambda: fused_stage(lane, networks=str(_wide(lane))))
    # This case is last: if the error is not caught, the GPU no longer works in this process.
    _wild_edges_to_a_network(lane, good)
    _answered("edges out of range", hits_in_other_tracks(expected, ask(stage, FEATURES=good)))


def _bad_hits() -> dict[str, np.ndarray]:
    return {
        "NaN": np.full((2, 3), np.nan, np.float32),
        "4 columns": np.zeros((5, 4), np.float32),
        "float64": np.zeros((5, 3)),
        "out of range": np.full((5, 3), 1e6, np.float32),
    }


def _refused(step: str, case: str, act: Any) -> None:
    try:
        act()
    except (Refused, ValueError, RuntimeError) as error:
        says = str(error)
        say(step, case=case, ok=bool(says) and "\n" not in says, says=says)
    else:
        say(step, case=case, ok=False, says="was not refused")


def _answered(case: str, other_hits: int) -> None:
    ok = other_hits <= _FEW
    say("invalid", case=f"the next request after: {case}", ok=ok, hits_in_other_tracks=other_hits)


def _wild_edges_to_a_stage(lane: Lane, hits: Float32) -> None:
    edges = np.array([[1, len(hits)], [0, 2]], dtype=np.int64)
    ask(_filter_stage(lane), INPUT__0=hits, INPUT__1=edges)


def _wild_edges_to_a_network(lane: Lane, hits: Float32) -> None:
    """Give edges to hits that do not exist directly to the networks, as Triton's PyTorch backend would."""
    edges = lane.there(np.array([[1, len(hits), 3], [0, 2, -1]], dtype=np.int64))
    for name in ("filter", "gnn"):
        network = load_network(lane.repository / name / "1" / "model.pt", device=lane.device)
        try:
            with torch.inference_mode():
                answer = network(lane.there(hits), edges).reshape(-1).cpu().numpy()
        except (RuntimeError, IndexError) as error:
            says = str(error).strip().splitlines()[-1]
            say("invalid", case=f"edges out of range, to the network {name}", ok=False, says=says)
        else:
            nan = np.isnan(answer).tolist()
            say("invalid", case=f"edges out of range, to the network {name}", ok=nan == [False, True, True], nan=nan)


def _wide(lane: Lane) -> Path:
    """Return a folder of networks whose embedding has one column more than the kernels support."""
    settings = dataclasses.replace(DEFAULT_NETWORKS, embed_dimensions=65)
    return write_networks(lane.folder / "wide", lane.repository, settings=settings)
