"""The short form of benchmarks/steady.py: faults behind an endpoint of a real Slurm cost no event but their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import missing
from steady import one_row
from steady_farm.rows import SHORT, Row
from steady_farm.site import Options, Site, farm

pytestmark = [pytest.mark.slurm, pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx", "prometheus")]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    with farm(Options(events=300, long=15.0)) as made:
        yield made


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_a_fault_costs_no_event_but_its_own(site: Site, row: Row):
    found = one_row(site, row, "".join(letter for letter in row.name if letter.isalnum()))
    assert found["right"], found
