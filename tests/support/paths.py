"""Paths of the checkout under test and of the files of the tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "support" / "fakes"
GOLDEN = ROOT / "tests" / "golden"
