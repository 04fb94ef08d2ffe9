"""The short form of benchmarks/steady.py: faults behind an endpoint of a real Slurm cost no event but their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import missing
from steady import one_row
from steady_farm.rows import ROWS, Row
from steady_farm.site import Options, Site, farm

pytestmark = [pytest.mark.slurm, pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx")]


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Site, Path]]:
    if reason := missing():
        pytest.skip(reason)
    with farm(Options(events=300, long=15.0)) as made:
        kept = made.home / "kept"
        shutil.copytree(made.home / "events", kept)
        made.start_farm()
        yield made, kept
        made.stop_farm()


@pytest.mark.parametrize("row", [row for row in ROWS if row.short], ids=lambda row: row.name)
def test_a_fault_costs_no_event_but_its_own(site, row: Row):
    made, kept = site
    found = one_row(made, row, [one for one in ROWS if one.short].index(row), kept)
    assert found["right"], found
