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

#: Measures a point once more: (point, repetition) -> row.
Measure = Callable[[Point, int], Row]
#: What a placement costs before its first figure, and a repetition beyond its window, in seconds; for estimates.
START_SECONDS, EXTRA_SECONDS = 20.0, 2.0
_MOST_FAILURES = 2


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How well a point is measured: from `repeats` to `most_repeats` windows of `window` seconds.

    Those beyond `repeats` are for a point whose events per second vary by more than `variation`, the standard
    deviation over the mean. No repetition begins `minutes` after the beginning.
    """

    window: float = 5.0
    repeats: int = 3
    most_repeats: int = 6
    variation: float = 0.05
    minutes: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points of a scan: every number of servers with every number of instances and every concurrency.

    With `direct` also the pipeline without a server, in as many processes as a placement has instances in all.
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
        """Return every pair of servers and instances, the smallest first."""
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
    """How far a scan is; it has no time after `until`, of the clock that `clock` reads."""

    until: float
    clock: Callable[[], float] = time.monotonic
    failed: dict[Point, str] = field(default_factory=dict)
    out_of_time: bool = False


def variation(rows: Sequence[Row]) -> float:
    """Return the standard deviation of the events per second over their mean; 0 for fewer than two repetitions."""
    rates = [row.events_per_s for row in rows]
    mean = statistics.fmean(rates) if rates else 0.0
    return statistics.stdev(rates) / mean if len(rates) > 1 and mean > 0 else 0.0


def needs_more(rows: Sequence[Row], effort: Effort) -> bool:
    """Whether a point with these repetitions is to be measured again."""
    if len(rows) < effort.repeats:
        return True
    return len(rows) < effort.most_repeats and variation(rows) > effort.variation


def pending(points: Iterable[Point], store: Store, effort: Effort) -> tuple[Point, ...]:
    """Return the points that are to be measured once more."""
    return tuple(point for point in points if needs_more(store.rows(point), effort))


def run_points(
    points: Sequence[Point], measure: Measure, *, store: Store, effort: Effort, progress: Progress, tell: Tell
) -> None:
    """Measure the points until none needs more, each once in turn, so that what drifts is in the spread of all.

    A point that fails twice is given up and noted in `progress`; so is that time was out.
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
    """Return how many seconds the scan takes from here at least and at most; `done` counts repetitions."""
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
