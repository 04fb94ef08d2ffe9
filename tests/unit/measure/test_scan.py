"""Which points a scan measures, how often, in which order, and when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_rows import repeated, row

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.measure.bench_table import Point, Row, Store
from exatrkx_hpc.measure.scan import (
    Effort,
    Grid,
    Progress,
    needs_more,
    pending,
    run_points,
    seconds_left,
    variation,
)

GRID = Grid(servers=(2, 1), instances=(1, 3), concurrency=(4, 1, 4), direct=True)
POINTS = tuple(Point(servers=1, instances=1, concurrency=number) for number in (1, 2))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_grid_has_every_combination_once_the_smallest_first():
    assert GRID.placements() == ((1, 1), (1, 3), (2, 1), (2, 3))
    assert [point.concurrency for point in GRID.points(2, 3)] == [1, 4]
    assert [(point.kind, point.instances) for point in GRID.direct_points()] == [
        ("direct", number) for number in (1, 2, 3, 6)
    ]
    assert Grid(servers=(1,), instances=(1,), concurrency=(1,)).direct_points() == ()


@pytest.mark.parametrize("flag", ["servers", "instances", "concurrency"])
@pytest.mark.parametrize("numbers", [(), (0,), (1, -2)])
def test_a_grid_refuses_numbers_that_cannot_be(flag: str, numbers: tuple[int, ...]):
    values = {"servers": (1,), "instances": (1,), "concurrency": (1,), flag: numbers}
    with pytest.raises(ConfigError, match=f"--{flag} needs integers of at least 1"):
        Grid(**values)


def test_only_a_point_that_is_not_steady_is_repeated_further():
    effort = Effort(repeats=3, most_repeats=5, variation=0.05)
    assert variation([]) == variation(repeated(10.0)) == 0.0
    assert variation(repeated(9.0, 11.0)) == pytest.approx(0.1414, abs=1e-4)
    assert needs_more(repeated(10.0, 10.0), effort)
    assert not needs_more(repeated(10.0, 10.1, 9.9), effort)
    assert needs_more(repeated(10.0, 12.0, 8.0), effort)
    assert needs_more(repeated(10.0, 12.0, 8.0, 10.0), effort)
    assert not needs_more(repeated(10.0, 12.0, 8.0, 10.0, 12.0), effort)


def scanned(
    folder: Path, rates: dict[int, list[float]], effort: Effort, **more: object
) -> tuple[Store, list, Progress]:
    """Run a scan of POINTS whose repetitions give these rates; a rate of 0 is a failure."""
    store = Store(folder, {})
    progress = more.get("progress") or Progress(until=1e9)
    order: list[tuple[int, int]] = []

    def measure(point: Point, repetition: int) -> Row:
        order.append((point.concurrency, repetition))
        if isinstance(progress.clock, Clock):
            progress.clock.now += 10.0
        rate = rates[point.concurrency].pop(0)
        if not rate:
            raise EndpointError("nothing measured")
        return row(concurrency=point.concurrency, rate=rate, repetition=repetition)

    run_points(POINTS, measure, store=store, effort=effort, progress=progress, tell=lambda line: None)
    return store, order, progress


def test_points_take_turns_and_the_unsteady_one_goes_on(tmp_path: Path):
    effort = Effort(repeats=2, most_repeats=4, variation=0.05)
    store, order, _ = scanned(tmp_path, {1: [10, 10], 2: [10, 20, 15, 15]}, effort)
    assert order == [(1, 1), (2, 1), (1, 2), (2, 2), (2, 3), (2, 4)]
    assert [one.events_per_s for one in store.rows(POINTS[1])] == [10, 20, 15, 15]


def test_a_point_that_fails_twice_is_given_up_and_the_others_go_on(tmp_path: Path):
    effort = Effort(repeats=2, most_repeats=2)
    store, _, progress = scanned(tmp_path, {1: [10, 0, 0], 2: [0, 7, 7]}, effort)
    assert list(progress.failed) == [POINTS[0]]
    assert [len(store.rows(point)) for point in POINTS] == [1, 2]


def test_nothing_begins_when_time_is_out_and_the_next_scan_goes_on(tmp_path: Path):
    effort = Effort(repeats=2, most_repeats=2)
    clock = Clock()
    progress = Progress(until=25.0, clock=clock)
    _, order, _ = scanned(tmp_path, {1: [10, 10], 2: [5, 5]}, effort, progress=progress)
    assert progress.out_of_time
    assert order == [(1, 1), (2, 1), (1, 2)]
    store, order, progress = scanned(tmp_path, {2: [5]}, effort)
    assert order == [(2, 2)]
    assert not progress.out_of_time
    assert pending(POINTS, store, effort) == ()


def test_the_time_left_counts_what_is_done_and_is_bounded():
    effort = Effort(window=8, repeats=2, most_repeats=4, minutes=60)
    grid = Grid(servers=(1,), instances=(1,), concurrency=(1, 2))
    assert seconds_left(grid, {}, effort) == (20 + 4 * 10, 20 + 8 * 10)
    assert seconds_left(grid, {POINTS[0]: 2, POINTS[1]: 1}, effort) == (20 + 10, 20 + 5 * 10)
    assert seconds_left(grid, {POINTS[0]: 4, POINTS[1]: 4}, effort) == (0, 0)
    assert seconds_left(GRID, {}, Effort(minutes=1)) == (60, 60)
