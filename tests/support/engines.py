"""The names of all container engines, including an example engine that only the tests have."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.config.engines import ENGINES

EXAMPLE = "example"
NAMES = (*ENGINES, EXAMPLE)


def add_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the example engine to the engine table, as a new engine does; its file is `engine_example.py`."""
    monkeypatch.setitem(ENGINES, EXAMPLE, "engine_example")


def write_program(folder: Path, name: str, script: str) -> None:
    """Write an executable bash script."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)
