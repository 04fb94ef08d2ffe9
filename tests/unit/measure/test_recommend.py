"""The knee of a scan, and whether the repetitions are enough to name it."""

from __future__ import annotations

import math

import pytest
from bench_rows import repeated, row, scan

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.measure.recommend import recommend, summaries


def place(found) -> tuple[int, int, int]:
    point = found.knee.point
    return point.servers, point.instances, point.concurrency


def test_a_point_is_summed_up_with_its_spread():
    (one,) = summaries(repeated(9.0, 10.0, 11.0))
    assert (one.repetitions, one.events_per_s, one.deviation) == (3, 10.0, 1.0)
    assert one.error == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    (alone,) = summaries([row()])
    assert math.isnan(alone.deviation) and math.isnan(alone.error)


def test_the_smallest_within_five_percent_of_the_best_is_named():
    rows = [
        *repeated(50.0, 50.1, 49.9, servers=1, instances=1, concurrency=4),
        *repeated(96.0, 96.1, 95.9, servers=1, instances=2, concurrency=4),
        *repeated(97.0, 97.1, 96.9, servers=1, instances=2, concurrency=8),
        *repeated(100.0, 100.1, 99.9, servers=2, instances=2, concurrency=8),
    ]
    found = recommend(rows)
    assert place(found) == (1, 2, 4)
    assert found.best.point.servers == 2
    assert found.share == pytest.approx(0.96)
    assert found.sure
    assert "1 server(s) x 2 instance(s), 4 in flight: 96.0 ± 0.2 events/s" in str(found)
    assert "96 % of the best" in str(found)
    assert place(recommend(rows, within=0.01)) == (2, 2, 8)
    assert place(recommend(rows, within=0.6)) == (1, 1, 4)


def test_a_server_costs_more_than_an_instance():
    rows = [*repeated(100, 100, servers=2, instances=1), *repeated(99, 99, servers=1, instances=3)]
    assert place(recommend(rows))[:2] == (1, 3)


def test_it_is_unsure_when_a_smaller_one_might_be_as_good():
    rows = [*repeated(93.0, 80.0, 106.0, servers=1), *repeated(100.0, 100.1, 99.9, servers=2)]
    found = recommend(rows)
    assert place(found)[0] == 2
    assert not found.sure
    assert [one.point.servers for one in found.rivals] == [1]
    assert "unsure: with its spread 1 server(s)" in str(found)


def test_it_is_unsure_when_the_knee_itself_varies_too_much():
    rows = [*repeated(96.0, 80.0, 112.0, servers=1), *repeated(100.0, 100.1, 99.9, servers=2)]
    found = recommend(rows)
    assert place(found)[0] == 1
    assert not found.sure


def test_one_repetition_is_never_sure():
    found = recommend([row(rate=10.0)])
    assert not found.sure
    assert "repeat the points" in str(found)


def test_what_has_no_server_is_no_placement():
    assert recommend(scan()).knee.point.kind == "service"
    with pytest.raises(InputError, match="no point was measured with a server"):
        recommend([row(0, 2, 2, kind="direct")])


def test_as_json_unknown_is_null():
    found = recommend([row(rate=10.0)]).as_dict()
    assert found["knee"]["error_95"] is None
    assert found["knee"]["gpu_utilisation"] is None
    assert (found["share_of_best"], found["sure"]) == (1.0, False)
