"""The benchmark of the ledger runs and gives what it promises; no test looks at what the ledger costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run

pytestmark = pytest.mark.slow


BENCHMARK = ROOT / "benchmarks" / "ledger.py"


def figures(tmp_path: Path, *flags: str) -> dict:
    file = tmp_path / "ledger.json"
    done = run([sys.executable, str(BENCHMARK), "--folder", str(tmp_path), "--json", str(file), *flags], timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_the_cost_of_a_ledger(tmp_path: Path):
    found = figures(tmp_path, "--events", "40", "--repeats", "1")
    assert found["pairs"] == [found["ratios"]["with/without"]]
    assert 0 < found["ledgers_share_of_processor_time"] < 1


def test_the_memory_of_a_ledger(tmp_path: Path):
    found = figures(tmp_path, "--memory", "20", "40")
    assert found["ratios"]["many/few"] == pytest.approx(1, abs=0.5)
