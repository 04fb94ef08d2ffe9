"""Numbers, shares and times as a person writes them."""

from __future__ import annotations

import pytest

from exatrkx_hpc.base.readable import duration, names, number, percent
from exatrkx_hpc.launch.slurm.parse import expand_hosts


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (4.5, "4.5"), (219.4, "219"), (1234567, "1,234,567"), (100, "100"), (0.5, "0.5")],
)
def test_numbers_have_three_digits_that_count(value, shown):
    assert number(value) == shown


def test_a_share_in_per_cent():
    assert percent(0.3333) == "33.3 %"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (59, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h 0 min"),
        (8040, "2 h 14 min"),
    ],
)
def test_a_time_has_the_units_that_suit_it(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [
        ([], ""),
        (["nid001"], "nid001"),
        ([f"nid{n:03}" for n in range(1, 65)], "nid[001-064]"),
        (["nid003", "nid001", "nid002", "nid010", "login1"], "login1, nid[001-003,010]"),
        (["a1", "a3"], "a[1,3]"),
        (["x9", "x10", "x11"], "x[10-11], x9"),
        (["n1-hsn0", "n2-hsn0"], "n1-hsn0, n2-hsn0"),
        (["nid1.site", "nid2.site"], "nid[1-2].site"),
        (["head", "head"], "head"),
        (["127.0.0.2", "127.0.0.3"], "127.0.0.[2-3]"),
    ],
)
def test_names_of_nodes_in_a_row_are_drawn_together(hosts, shown):
    assert names(hosts) == shown
    assert sorted(expand_hosts(shown.replace(", ", ","))) == sorted(set(hosts))
