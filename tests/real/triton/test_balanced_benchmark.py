"""The benchmark of the balancer runs, stops what it started, and writes figures of a known shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run


@pytest.mark.usefixtures("triton", "nginx")
def test_a_short_run_has_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "balanced.json"
    script = ROOT / "benchmarks" / "balanced.py"
    options = ["--model", "tiny", "--hits", "100", "--seconds", "0.3", "--repeats", "2", "--json", str(out)]
    done = run([sys.executable, str(script), *options], timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["bytes"] == 1200
    assert 0 < figures["least"] <= figures["ratio"] <= figures["most"]
