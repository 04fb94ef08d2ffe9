"""A scan: which points are measured, how often, and when to stop."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.measure.bench_table import Point, Row, Store
from exatrkx_hpc.measure.events import PointFailed, PointMeasured

#: Measures one repetition of a point: (point, repetition) -> row.
Measure = Callable[[Point, int], Row]
#: Estimated seconds to start a placement, and of a repetition in addition to its window.
START_SECONDS, EXTRA_SECONDS = 20.0, 2.0
_MOST_FAILURES = 2


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort per point: from `repeats` to `most_repeats` windows of `window` seconds.

    A point gets more than `repeats` windows while its events per second vary by more than `variation` (standard
    deviation divided by mean). No repetition starts later than `minutes` after the start of the scan.
    """

    window: float = 5.0
    repeats: int = 3
    most_repeats: int = 6
    variation: float = 0.05
    minutes: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points of a scan: all combinations of numbers of servers, numbers of instances and concurrencies.

    `direct` adds the pipeline without a server, with as many processes as a placement has instances in total.
    """

    servers: Sequence[int]
    instances: Sequence[int]
    concurrency: Sequence[int]
    direct: bool = False

    def __post_init__(self) -> None:
        for flag, numbers in (
            ("--servers", self.servers),
            ("--instances", self.instances),
            ("--concurrency", self.concurrency),
        ):
            if not numbers or min(numbers) < 1:
                raise ConfigError(f"{flag} needs integers of at least 1, such as 1,2,4")

    def placements(self) -> tuple[tuple[int, int], ...]:
        """Return every pair (servers, instances), sorted."""
        return tuple(itertools.product(sorted(set(self.servers)), sorted(set(self.instances))))

    def points(self, servers: int, instances: int) -> tuple[Point, ...]:
        """Return the points of one placement."""
        return tuple(
            Point(servers=servers, instances=instances, concurrency=number) for number in sorted(set(self.concurrency))
        )

    def direct_points(self) -> tuple[Point, ...]:
        """Return the points without a server."""
        numbers = sorted({servers * instances for servers, instances in self.placements()}) if self.direct else []
        return tuple(Point(kind="direct", servers=0, instances=one, concurrency=one) for one in numbers)


@dataclass
class Progress:
    """The progress of a scan; it ends at `until`, a time of `clock` in seconds."""

    until: float
    clock: Callable[[], float] = time.monotonic
    failed: dict[Point, str] = field(default_factory=dict)
    out_of_time: bool = False


def variation(rows: Sequence[Row]) -> float:
    """Return standard deviation divided by mean of the events per second; 0 for fewer than two repetitions."""
    rates = [row.events_per_s for row in rows]
    mean = statistics.fmean(rates) if rates else 0.0
    return statistics.stdev(rates) / mean if len(rates) > 1 and mean > 0 else 0.0


def needs_more(rows: Sequence[Row], effort: Effort) -> bool:
    """Return whether a point with these repetitions needs another one."""
    if len(rows) < effort.repeats:
        return True
    return len(rows) < effort.most_repeats and variation(rows) > effort.variation


def pending(points: Iterable[Point], store: Store, effort: Effort) -> tuple[Point, ...]:
    """Return the points that need another repetition."""
    return tuple(point for point in points if needs_more(store.rows(point), effort))


def run_points(
    points: Sequence[Point], measure: Measure, *, store: Store, effort: Effort, progress: Progress, tell: Tell
) -> None:
    """Measure the points in rounds until none needs more repetitions.

    Each point is measured once per round, so that a drift affects the spread of all points. A point that fails twice is
    given up. `progress` notes points that were given up, and whether the time ran out.
    """
    failures: dict[Point, int] = {}
    while open_points := [one for one in pending(points, store, effort) if one not in progress.failed]:
        for point in open_points:
            if progress.clock() >= progress.until:
                progress.out_of_time = True
                return
            repetition = len(store.rows(point)) + 1
            try:
                row = measure(point, repetition)
            except EndpointError as error:
                failures[point] = failures.get(point, 0) + 1
                tell(PointFailed(**vars(point), reason=str(error)))
                if failures[point] >= _MOST_FAILURES:
                    progress.failed[point] = str(error)
                continue
            store.add(row)
            tell(_measured(row, store.rows(point)))


def seconds_left(grid: Grid, done: Mapping[Point, int], effort: Effort) -> tuple[float, float]:
    """Estimate the minimum and maximum remaining seconds of the scan; `done` counts finished repetitions."""
    shortest = longest = 0.0
    for points in [grid.points(*placement) for placement in grid.placements()] + [grid.direct_points()]:
        least = sum(max(0, effort.repeats - done.get(point, 0)) for point in points)
        most = sum(max(0, effort.most_repeats - done.get(point, 0)) for point in points)
        shortest += (START_SECONDS if least else 0.0) + least * (effort.window + EXTRA_SECONDS)
        longest += (START_SECONDS if most else 0.0) + most * (effort.window + EXTRA_SECONDS)
    limit = 60.0 * effort.minutes
    return min(shortest, limit), min(longest, limit)


def _measured(row: Row, rows: Sequence[Row]) -> PointMeasured:
    return PointMeasured(
        **vars(row.point),
        repetition=row.repetition,
        events_per_s=row.events_per_s,
        p50_ms=row.p50_ms,
        variation=variation(rows),
    )
