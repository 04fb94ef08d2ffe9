"""The benchmark of the balancer runs, stops what it started, and writes figures of a known shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run


@pytest.mark.usefixtures("triton", "nginx")
def test_a_quick_run_has_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "balanced.json"
    script = ROOT / "benchmarks" / "balanced.py"
    done = run([sys.executable, str(script), "--quick", "--bytes", "1200", "--json", str(out)], timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    settings, ways = figures["settings"], figures["ways"]
    assert (settings["servers"], settings["repeats"], settings["bytes_per_request"]) == (2, 1, 1200)
    assert list(ways) == ["direct", "open", "token", "token+tls"]
    for way, one in ways.items():
        (window,) = one["windows"]
        assert 0 < window["per_second"] == one["per_second"], way
        assert 0 < window["processor_ms"] == one["processor_ms"], way
        assert one["least"] == one["by_direct"] == one["most"] > 0, way
        assert one["by_direct_processor"] > 0, way
        assert f"{way} " in done.stdout
    assert ways["direct"]["by_direct"] == ways["direct"]["by_direct_processor"] == 1
