"""Judge the lines of all steps: each acceptance criterion is true, false or not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Line = dict[str, Any]
Verdict = bool | str
NOT_RUN = "not run"

#: Largest ratio of the times of the last of the first 40 events to those of later events.
_COLD = 2.0
_MEMORY_MB = 12 * 1024
_CROWDED, _MOST_NEIGHBOURS = 100_000, 500
_FUSED = 0.85
#: Hits that may be in other tracks: scores within rounding of a cut move a few, a fault in the streams moves most.
_FEW = 12


def judge(lines: Sequence[Line], *, on_gpu: bool) -> dict[str, Verdict]:
    """Return True, False or `not run` for each criterion; the criteria for speed and memory need a GPU."""

    def of(step: str, key: str, good: Callable[[Any], bool], *, gpu: bool = False) -> Verdict:
        values = [line[key] for line in lines if line["step"] == step and key in line]
        if (gpu and not on_gpu) or not values:
            return NOT_RUN
        return all(good(value) for value in values)

    def true(step: str, key: str) -> Verdict:
        return of(step, key, lambda value: value is True)

    return {
        "no_step_failed": not any("failed" in line for line in lines),
        "kernels_equal": true("kernels", "equal"),
        "crowded_event": _crowded(lines),
        "no_edge_differs_beyond_rounding": of("agreement", "beyond", lambda edges: edges == 0),
        "other_streams": _both(
            true("streams", "cupy_edges_equal"),
            of("streams", "torch_hits_in_other_tracks", lambda hits: hits <= _FEW),
            of("streams", "cupy_hits_in_other_tracks", lambda hits: hits <= _FEW),
        ),
        "last_cold_events_below_twice_steady": _cold(lines) if on_gpu else NOT_RUN,
        "fused_0.85_of_direct": of("fused", "ratio", lambda ratio: ratio >= _FUSED, gpu=True),
        "fused_labels": of("fused", "hits_in_other_tracks", lambda hits: hits <= _FEW),
        "memory_below_12_gib": _memory(lines) if on_gpu else NOT_RUN,
        "invalid_input": true("invalid", "ok"),
        "gpu_tests_pass": true("tests", "ok"),
        "sanitizer_clean": true("sanitizer", "clean"),
        "triton_answers": _both(true("triton", "ok"), of("triton", "hits_in_other_tracks", lambda hits: hits <= _FEW)),
    }


def _both(*verdicts: Verdict) -> Verdict:
    if False in verdicts:
        return False
    return NOT_RUN if NOT_RUN in verdicts else True


def _crowded(lines: Sequence[Line]) -> Verdict:
    sizes = [line["most_neighbours"] for line in lines if line["step"] == "kernels" and line.get("hits") == _CROWDED]
    return sizes[0] > _MOST_NEIGHBOURS if sizes else NOT_RUN


def _memory(lines: Sequence[Line]) -> Verdict:
    used = [line["device_used_mb"] for line in lines if line["step"] == "memory" and line.get("hits") == _CROWDED]
    return used[0] < _MEMORY_MB if used else NOT_RUN


def _cold(lines: Sequence[Line]) -> Verdict:
    for line in lines:
        if line["step"] == "cold" and "last_median_ms" in line:
            return bool(line["last_median_ms"] < _COLD * line["steady_median_ms"])
    return NOT_RUN
