"""Where the checkout is that is tested, and what the tests keep in files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "support" / "fakes"
GOLDEN = ROOT / "tests" / "golden"
