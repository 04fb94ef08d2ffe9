"""The knee of a scan: the smallest placement with nearly the highest throughput."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.measure.bench_table import Point, Row, nulls

#: A placement whose throughput is lower than the best by at most this share counts as equally good.
WITHIN: Final = 0.05
#: Two-sided 95 % points of Student's t for 1 to 10 degrees of freedom.
_STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A point over its repetitions: means, and some standard deviations (nan for one repetition)."""

    point: Point
    repetitions: int
    events_per_s: float
    deviation: float
    mean_deviation: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    input_ms: float
    compute_ms: float
    output_ms: float
    network_ms: float
    cpu_utilisation: float
    gpu_utilisation: float
    cpu_deviation: float
    gpu_deviation: float

    @property
    def error(self) -> float:
        """Half the width of the 95 % confidence interval of `events_per_s`; nan for one repetition."""
        if self.repetitions < 2:
            return math.nan
        student = _STUDENT[min(self.repetitions - 1, len(_STUDENT)) - 1]
        return student * self.deviation / math.sqrt(self.repetitions)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The knee, the best point, and whether the choice of the knee is statistically sure.

    `share` is the knee's events per second divided by the best's. `sure` means that another scan should give the same
    knee: the knee is the best or its 95 % interval is `within` of the best, and the interval of no smaller point
    reaches this limit (`rivals`). A knee or a smaller point with one repetition has no interval: then `sure` is false.
    """

    knee: Summary
    best: Summary
    share: float
    within: float
    sure: bool
    rivals: tuple[Summary, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the recommendation as values for JSON."""
        return {
            "knee": _facts(self.knee),
            "best": _facts(self.best),
            "share_of_best": round(self.share, 4),
            "within": self.within,
            "sure": self.sure,
            "rivals": [_facts(one) for one in self.rivals],
        }

    def __str__(self) -> str:
        knee, best = self.knee, self.best
        text = f"{knee.point}: {_rate(knee)}, p95 {knee.p95_ms:.0f} ms; "
        if knee is best:
            text += "the best of all"
        else:
            text += f"{100 * self.share:.0f} % of the best ({best.point}: {_rate(best)})"
        if self.sure:
            return text
        if not self.rivals:
            return f"{text}; unsure: repeat the points (--repeats) to know their spread"
        return f"{text}; unsure: with its spread {self.rivals[0].point} could be as good"


def summaries(rows: Iterable[Row]) -> tuple[Summary, ...]:
    """Return the summary of each point, sorted by point."""
    groups: dict[Point, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.point].append(row)
    return tuple(_summary(point, groups[point]) for point in sorted(groups))


def recommend(rows: Iterable[Row], *, within: float = WITHIN) -> Recommendation:
    """Return the smallest point whose events per second are within `within` (0 to 1) of the best.

    The smallest point has the fewest servers, then the fewest instances, then the fewest requests in flight. Raises
    InputError when no point with a server was measured.
    """
    known = [one for one in summaries(rows) if one.point.kind == "service"]
    if not known:
        raise InputError("no point was measured with a server; resume the scan with 'exatrkx-hpc bench'")
    best = max(known, key=lambda one: one.events_per_s)
    enough = (1.0 - within) * best.events_per_s
    knee = min((one for one in known if one.events_per_s >= enough), key=_size)
    # A smaller point whose interval reaches the limit may be the real knee; the knee itself may be below the limit.
    smaller = (one for one in known if _size(one) < _size(knee))
    rivals = tuple(sorted((one for one in smaller if not one.events_per_s + one.error < enough), key=_size))
    doubtful = knee is not best and not knee.events_per_s - knee.error >= enough
    alone = knee is best and knee.repetitions < 2
    return Recommendation(
        knee=knee,
        best=best,
        share=knee.events_per_s / best.events_per_s if best.events_per_s else 1.0,
        within=within,
        sure=not rivals and not doubtful and not alone,
        rivals=rivals,
    )


def _size(one: Summary) -> tuple[int, int, int]:
    # A server costs a GPU or a node, another instance only memory, a request in flight only latency.
    return one.point.servers, one.point.instances, one.point.concurrency


def _summary(point: Point, rows: Sequence[Row]) -> Summary:
    def mean(name: str) -> float:
        known = [value for row in rows if not math.isnan(value := getattr(row, name))]
        return statistics.fmean(known) if known else math.nan

    names = ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "queue_ms", "input_ms", "compute_ms", "output_ms", "network_ms")
    return Summary(
        point=point,
        repetitions=len(rows),
        deviation=_deviation(rows, "events_per_s"),
        mean_deviation=_deviation(rows, "mean_ms"),
        cpu_deviation=_deviation(rows, "cpu_utilisation"),
        gpu_deviation=_deviation(rows, "gpu_utilisation"),
        **{name: mean(name) for name in ("events_per_s", *names, "cpu_utilisation", "gpu_utilisation")},
    )


def _deviation(rows: Sequence[Row], name: str) -> float:
    values = [value for row in rows if not math.isnan(value := getattr(row, name))]
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _facts(one: Summary) -> dict[str, object]:
    values: dict[str, object] = {
        "servers": one.point.servers,
        "instances": one.point.instances,
        "concurrency": one.point.concurrency,
        "repetitions": one.repetitions,
        "events_per_s": one.events_per_s,
        "error_95": one.error,
        **{name: getattr(one, name) for name in ("p50_ms", "p95_ms", "p99_ms", "cpu_utilisation", "gpu_utilisation")},
    }
    return nulls(values)


def _rate(one: Summary) -> str:
    return f"{one.events_per_s:.1f}{'' if math.isnan(one.error) else f' ± {one.error:.1f}'} events/s"
