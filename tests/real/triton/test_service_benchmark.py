"""The benchmark of the service runs, stops what it started, and writes figures of a known shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run

pytest.importorskip("torch")

SCRIPT = ROOT / "benchmarks" / "service.py"


@pytest.mark.usefixtures("triton")
def test_a_quick_run_has_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "service.json"
    done = run([sys.executable, str(SCRIPT), "--quick", "--hits", "300", "--json", str(out)], timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert (figures["cores"], figures["repeats"]) == (1, 1)
    assert figures["in_flight"] == {"ensemble": 4, "fused": 2}
    assert figures["instances"] == {"stages": 1, "fused": 1}
    assert figures["events"]["number"] == 16
    assert set(figures["modes"]) == {"ensemble", "fused", "direct"}
    for mode, one in figures["modes"].items():
        assert one["events_per_second"] > 0 and one["processor_ms_per_event"] > 0, mode
        (window,) = one["windows"]
        assert window["events"] > 0 and window["seconds"] > 0
    assert set(figures["modes"]["direct"]["processor_ms_by_program"]) >= {"load"}
    assert set(figures["modes"]["fused"]["processor_ms_by_program"]) >= {"load", "server", "exatrkx_fused"}
    assert set(figures["ratios"]) == {"ensemble/direct", "fused/direct"}
    for ratio in figures["ratios"].values():
        assert ratio["events_per_second"] > 0 and ratio["processor"] > 0
    assert "ms of processor/event" in done.stdout
