"""The path of the reference data, which are not in this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def reference_folder() -> Path:
    """Return the folder that holds `exatrkx/` with reference events and stages; skip the test without it."""
    folder = os.environ.get("EXATRKX_REFERENCE_DATA")
    if not folder:
        pytest.skip("reference data: EXATRKX_REFERENCE_DATA is not set")
    return Path(folder)
