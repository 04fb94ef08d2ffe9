"""The benchmark of the clients runs, stops what it started, and writes figures of a known shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from images.perf_analyzer import perf_analyzer
from paths import ROOT

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import run

SCRIPT = ROOT / "benchmarks" / "clients.py"


@pytest.mark.usefixtures("triton", "nginx")
def test_a_quick_run_has_every_figure(tmp_path: Path) -> None:
    try:
        folder = Path(perf_analyzer().command[0]).parents[1]
    except MissingComponent as error:
        pytest.skip(str(error))
    out = tmp_path / "clients.json"
    argv = [sys.executable, str(SCRIPT), "--quick", "--perf-analyzer", str(folder), "--json", str(out)]
    done = run(argv, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["small"]
    assert figures["goal"] == 1.0
    (found,) = figures["in_flight"].values()
    assert found["events_per_second"] > 0 and found["inferences_per_second"] > 0
    assert found["ratio"] == pytest.approx(found["turns"][0]["ours"] / found["turns"][0]["theirs"])
    assert min(found["processor_ms_per_event"].values()) > 0
    assert "events/s" in done.stdout
