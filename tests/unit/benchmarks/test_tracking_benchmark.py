"""The benchmark of the tracking kernels runs and writes what it promises; no test looks at how fast they are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run

pytestmark = pytest.mark.slow


BENCHMARK = ROOT / "benchmarks" / "tracking.py"
RIVALS = ("frnn/cdist", "frnn/cKDTree", "components/networkx", "direct/plain")


def test_a_quick_run_writes_every_figure(tmp_path: Path):
    pytest.importorskip("torch")
    file = tmp_path / "tracking.json"
    environment = {key: value for key, value in os.environ.items() if key != "EXATRKX_REFERENCE_DATA"}
    done = run([sys.executable, str(BENCHMARK), "--quick", "--json", str(file)], env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    (events,) = figures["events"].values()
    assert set(figures["ratios"]) == {f"1000 hits: {rival}" for rival in RIVALS}
    for rival in RIVALS:
        assert events[rival]["ratio"] == figures["ratios"][f"1000 hits: {rival}"] > 0
        assert min(events[rival][key] for key in ("ours_ms", "rival_ms", "wall_ratio", "turns")) > 0
    assert list(events["stages"]) == ["embed", "frnn", "filter", "applyfilter", "gnn", "components"]
    assert sum(stage["share"] for stage in events["stages"].values()) == pytest.approx(1)
    assert events["direct/plain"]["other_hits"] == 0
    assert [point["hits"] for point in figures["memory"]] == [500]
    assert figures["memory"][0]["candidates"] > 0
    assert "components/networkx" in done.stdout
