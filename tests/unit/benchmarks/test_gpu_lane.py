"""The lane for a GPU, rehearsed without one: its lines, its judgement, and what becomes of a step that fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

pytest.importorskip("torch")

from gpu_lane import children, programs, results, speed, summary
from twins import twin

from exatrkx_hpc.base.process import run
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

pytestmark = pytest.mark.slow


LANE = ROOT / "benchmarks" / "gpu.py"
#: What a machine with a GPU may not have; the lane gets along without.
MISSING = (
    "google", "grpc", "jinja2", "networkx", "prometheus_client", "psutil", "pydantic", "pytest", "requests", "rich",
    "tritonclient", "typer",
)  # fmt: skip


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder whose modules say that a package is not there."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    for name in MISSING:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed there')\n")
    return folder


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_rehearsal_on_the_cpu_runs_every_step(blocked: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(blocked), "TMPDIR": str(tmp_path)}
    done = run([sys.executable, str(LANE), "--device", "cpu", "--quick"], env=environment, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done.stdout)
    steps = list(dict.fromkeys(line["step"] for line in lines))
    assert steps == [
        *("environment", "kernels", "agreement", "streams", "cold", "direct", "profile", "fused", "memory"),
        *("invalid", "tests", "sanitizer", "triton", "summary"),
    ]
    assert not [line for line in lines if "failed" in line]
    assert {line["step"] for line in lines if "not_run" in line} == {
        *("streams", "memory", "tests", "sanitizer", "triton"),
    }
    assert [line["networks"] for line in lines if line["step"] == "direct"] == ["shipped", "original size"]
    assert [line["processes"] for line in lines if "processes" in line] == [2]
    verdicts = {key: value for key, value in lines[-1].items() if key not in ("step", "at_s", "device", "quick")}
    assert {key for key, value in verdicts.items() if value is True} == {
        *("no_step_failed", "kernels_equal", "no_edge_differs_beyond_rounding", "fused_labels", "invalid_input"),
    }
    assert {value for value in verdicts.values() if value is not True} == {summary.NOT_RUN}
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]


def test_without_the_device_each_step_says_so_and_the_rest_runs(tmp_path: Path):
    argv = [sys.executable, str(LANE), "--quick", "--device", "cuda:0", "--only", "agreement", "triton"]
    done = run(argv, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    first, second, last = lines_of(done.stdout)
    assert first["step"] == "agreement"
    assert "no CUDA on this machine" in first["failed"]
    assert second == {"step": "triton", "at_s": second["at_s"], "not_run": second["not_run"]}
    assert last["no_step_failed"] is False


# --- a step in a process of its own ---------------------------------------------------------------------


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    return []


def step(code: str, told: list[dict[str, Any]], seconds: float = 60) -> None:
    children.run_step("one", [sys.executable, "-c", code], env=os.environ, seconds=seconds, tell=told.append)


def test_lines_are_passed_on_and_anything_else_goes_to_stderr(told, capfd):
    step("""print('{"step": "one", "a": 1}'); print('something'); print('{"step" broken'); print()""", told)
    assert told == [{"step": "one", "a": 1}]
    assert capfd.readouterr().err == 'one: something\none: {"step" broken\n'


def test_a_step_that_dies_fails_with_the_last_thing_that_it_said(told):
    step("""import os; print('{"step": "one"}'); print('CUDA error: no more', flush=True); os.abort()""", told)
    assert told == [{"step": "one"}, {"step": "one", "failed": "exit status -6: CUDA error: no more"}]


def test_a_step_that_told_its_failure_fails_once(told):
    step("""print('{"step": "one", "failed": "so"}', flush=True); raise SystemExit(1)""", told)
    assert told == [{"step": "one", "failed": "so"}]


def test_a_step_that_hangs_is_ended_with_all_that_it_started(told, tmp_path: Path):
    file = tmp_path / "pid"
    inner = "import time; time.sleep(600)"
    code = (
        "import subprocess, sys, time, signal, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid)); time.sleep(600)\n"
    )
    step(code, told, seconds=3)
    assert told == [{"step": "one", "failed": "not done within 3 s"}]
    stat = Path(f"/proc/{file.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


# --- what the lines say ---------------------------------------------------------------------------------


def test_a_criterion_is_true_false_or_not_run():
    lines = [
        {"step": "kernels", "hits": 100_000, "most_neighbours": 612, "equal": True},
        {"step": "kernels", "case": "ties", "equal": False},
        {"step": "cold", "last_median_ms": 9.0, "steady_median_ms": 5.0},
        {"step": "memory", "hits": 50_000, "device_used_mb": 9_000},
        {"step": "memory", "hits": 100_000, "device_used_mb": 13_000},
        {"step": "fused", "ratio": 0.9, "hits_in_other_tracks": 300},
        {"step": "fused", "failed": "TimeoutError"},
        {
            "step": "streams",
            "cupy_edges_equal": True,
            "torch_hits_in_other_tracks": 900,
            "cupy_hits_in_other_tracks": 0,
        },
        {"step": "sanitizer", "tool": "none", "equal": True},
        {"step": "sanitizer", "not_run": "compute-sanitizer is not on PATH"},
        {"step": "triton", "ok": True, "hits_in_other_tracks": 900},
    ]
    assert summary.judge(lines, on_gpu=True) == {
        "no_step_failed": False,
        "kernels_equal": False,
        "crowded_event": True,
        "no_edge_differs_beyond_rounding": "not run",
        "other_streams": False,
        "last_cold_events_below_twice_steady": True,
        "fused_0.85_of_direct": True,
        "fused_labels": False,
        "memory_below_12_gib": False,
        "invalid_input": "not run",
        "gpu_tests_pass": "not run",
        "sanitizer_clean": "not run",
        "triton_answers": False,
    }
    on_cpu = summary.judge(lines, on_gpu=False)
    assert {on_cpu[key] for key in on_cpu if key.startswith(("last_cold", "fused_0", "memory"))} == {"not run"}


def test_edges_that_rounding_moves_over_a_limit_are_told_from_others():
    rng = np.random.default_rng(1)
    places = rng.normal(0, 0.2, (700, 8)).astype(np.float32)
    within = {"radius": DEFAULT_SETTINGS.radius, "max_neighbours": DEFAULT_SETTINGS.max_neighbours}
    ours = fixed_radius_edges(places, **within)
    moved = places + rng.normal(0, 2e-5, places.shape).astype(np.float32)
    theirs = fixed_radius_edges(moved, **within)
    assert results.most_neighbours(places, ours) == 699
    found = results.edge_differences(ours, theirs, places)
    assert found["at_limit"] > 0
    assert found["beyond"] == 0
    assert found["common"] == ours.shape[1] - found["at_limit"] // 2
    lost = results.edge_differences(ours, ours[:, 1:], places)
    assert (lost["common"], lost["beyond"] + lost["at_limit"]) == (ours.shape[1] - 1, 1)
    assert results.edge_differences(ours[:, 200:], ours, places)["beyond"] > 150


def test_a_trace_tells_what_the_device_did(tmp_path: Path):
    def row(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    rows = [
        row("cpu_op", "aten::mm", 0, 100),
        row("cuda_runtime", "cudaLaunchKernel", 1, 2),
        row("cuda_driver", "cuLaunchKernel", 4, 2),
        row("cuda_runtime", "cudaMemcpyAsync", 7, 2),
        row("cuda_runtime", "cudaStreamSynchronize", 9, 2),
        row("kernel", "gemm", 10, 1000),
        row("kernel", "frnn_count", 500, 1000),  # beside the other one
        row("gpu_memcpy", "Memcpy HtoD", 3000, 500),
        {"ph": "M", "name": "process_name", "args": {}},
    ]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"traceEvents": rows}))
    assert speed.read_trace(file) == {
        "launches": 2,
        "synchronisations": 1,
        "copies": 1,
        "allocations": 0,
        "calls": dict.fromkeys(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize"), 1),
        "kernels": 2,
        "busy_ms": 1.99,
        "longest_us": {"gemm": 1000, "frnn_count": 1000, "Memcpy HtoD": 500},
    }


CLEAN = ["========= COMPUTE-SANITIZER", "0 hits, ...: equal=True", "========= ERROR SUMMARY: 0 errors"]
OURS = [
    "========= COMPUTE-SANITIZER",
    "========= Invalid __global__ write of size 8 bytes",
    "=========     at frnn_write+0x1f0",
    "=========     by thread (0,0,0) in block (0,0,0)",
    "========= ERROR SUMMARY: 1 error",
]
ELSEWHERE = [line.replace("frnn_write", "cupy_scan") for line in OURS]
REFUSED = ["========= COMPUTE-SANITIZER", "========= Error: Device not supported. Please refer to the documentation"]


@pytest.mark.parametrize(
    ("status", "said", "clean", "ours"),
    [
        (0, CLEAN, True, []),
        (9, OURS, False, ["frnn_write"]),
        (9, ELSEWHERE, True, []),  # told, but no fault of ours
        (1, CLEAN, False, []),  # the kernels gave something else than the CPU
        (255, REFUSED, False, []),
        (None, CLEAN[:2], False, []),  # time was up
    ],
)
def test_the_sanitizers_words_are_understood(status: int | None, said: list[str], clean: bool, ours: list[str]):
    judged = programs.judged(status, said)
    assert (judged["clean"], judged["in_our_kernels"]) == (clean, ours)
    assert judged["elsewhere"] == (["cupy_scan"] if said is ELSEWHERE else [])


def test_the_sanitizers_script_agrees_on_the_kernels_twin():
    twin()
    path = os.pathsep.join(str(ROOT / part) for part in ("tests/support/fakes/cupy_on_cpu", "tests/support", "."))
    script = ROOT / "tests" / "gpu" / "sanitize.py"
    done = run([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 11
    assert all(line.endswith("equal=True") for line in said)
