"""Every container engine by its name, with one of the tests' own among them, which the package does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.config.engines import ENGINES

EXAMPLE = "example"
NAMES = (*ENGINES, EXAMPLE)


def add_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the line to the table that a new engine adds; its file is `engine_example.py`."""
    monkeypatch.setitem(ENGINES, EXAMPLE, "engine_example")


def write_program(folder: Path, name: str, script: str) -> None:
    """Write a program of bash."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)
