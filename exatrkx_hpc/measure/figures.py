"""The figures of a scan: throughput, utilisation, latency, scaling, and service compared with mode direct."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.measure.bench_table import Row
from exatrkx_hpc.measure.figure_file import (
    COLOURS,
    GREY,
    Series,
    draw,
    finish_axes,
    legend_above,
    new_figure,
    number_axis,
    save_figure,
)
from exatrkx_hpc.measure.recommend import Summary, summaries
from exatrkx_hpc.measure.scan_view import ScanView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARTS: Final = (
    ("queue_ms", "queue", "#E69F00"),
    ("input_ms", "input", "#56B4E9"),
    ("compute_ms", "compute", "#0072B2"),
    ("output_ms", "output", "#CC79A7"),
    ("network_ms", "network and client", "#BBBBBB"),
)
_RATE: Final = "events per second"
_IN_FLIGHT: Final = "requests in flight"


def save_figures(
    rows: Iterable[Row], folder: Path, *, formats: Sequence[str] = ("png", "svg", "pdf"), title: str = ""
) -> list[Path]:
    """Write each figure for which there are enough rows, in all `formats`, and return the paths.

    Raises MissingComponent without matplotlib, OutputError when a file cannot be written.
    """
    written = []
    for name, figure in make_figures(rows, title=title):
        for suffix in formats:
            written.append(folder / f"{name}.{suffix}")
            save_figure(figure, written[-1])
    return written


def make_figures(rows: Iterable[Row], *, title: str = "") -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for each figure with enough rows; raises MissingComponent without matplotlib."""
    known = summaries(rows)
    scan = ScanView(
        served=tuple(one for one in known if one.point.kind == "service"),
        direct=tuple(one for one in known if one.point.kind == "direct"),
        title=title,
    )
    if not scan.served:
        return
    yield "throughput_concurrency", _concurrency(scan)
    yield "throughput_instances", _instances(scan)
    yield "latency_split", _latency(scan)
    if len({(one.point.servers, one.point.instances) for one in scan.served}) > 1:
        yield "scaling", _scaling(scan)
    if scan.direct:
        yield "service_direct", _service_direct(scan)


def _concurrency(scan: ScanView) -> Figure:
    """Draw throughput against concurrency: one panel per number of servers, one line per number of instances."""
    panels = len(scan.servers)
    note = scan.note("perf_analyzer at the endpoint")
    figure = new_figure(max(4.4, 0.8 + 3.2 * panels), 3.6, note=note)
    row = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axes, servers in zip(row, scan.servers, strict=True):
        lines = [
            _rates(group, [one.point.concurrency for one in group], place, f"{_count(instances, 'instance')} each")
            for place, instances in enumerate(scan.instances)
            if (group := scan.at(servers, instances))
        ]
        draw(axes, lines, logarithmic=True)
        number_axis(axes, [one.point.concurrency for one in scan.served], logarithmic=True)
        finish_axes(axes, x=_IN_FLIGHT, y=_RATE if axes is row[0] else "", title=_count(servers, "server"))
    row[0].set_ylim(bottom=0)  # for all panels; last, because it fixes the upper end of the axis
    fullest = max(row, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    legend_above(figure, fullest, title=scan.title)
    return figure


def _instances(scan: ScanView) -> Figure:
    """Draw throughput against instances; below it, the utilisation at the same points."""
    figure = new_figure(4.8, 5.2, note=scan.note("at the concurrency that gave most"))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    busy = "gpu" if any(not math.isnan(one.gpu_utilisation) for one in scan.served) else "cpu"
    rates, shares = [], []
    for place, servers in enumerate(scan.servers):
        group = scan.best(servers)
        numbers = [one.point.instances for one in group]
        rates.append(_rates(group, numbers, place, _count(servers, "server")))
        spread = [100.0 * _zero(getattr(one, f"{busy}_deviation")) for one in group]
        used = [100.0 * getattr(one, f"{busy}_utilisation") for one in group]
        shares.append(Series(x=numbers, y=used, spread=spread, place=place))
    draw(above, rates)
    draw(below, shares)
    finish_axes(above, y=_RATE)
    finish_axes(below, x="instances of each model in a server", y=f"{busy.upper()} utilisation [%]")
    number_axis(below, list(scan.instances))
    above.set_ylim(bottom=0)
    below.set_ylim(0, 105)
    legend_above(figure, above, title=scan.title)
    return figure


def _latency(scan: ScanView) -> Figure:
    """Draw latency split into its parts: one panel per placement, one bar per concurrency."""
    places = sorted({(one.point.servers, one.point.instances) for one in scan.served})
    columns = min(3, len(places))
    rows = math.ceil(len(places) / columns)
    note = scan.note("mean latency of a request")
    figure = new_figure(max(4.8, 0.6 + 2.5 * columns), 1.2 + 2.2 * rows, note=note)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for number, (axes, (servers, instances)) in enumerate(zip(grid.ravel(), places, strict=False)):
        _stack(axes, scan.at(servers, instances))
        finish_axes(
            axes,
            x=_IN_FLIGHT if number + columns >= len(places) else "",
            y="latency [ms]" if number % columns == 0 else "",
            title=f"{_count(servers, 'server')}, {_count(instances, 'instance')} each",
        )
    for axes in grid.ravel()[len(places) :]:
        axes.set_axis_off()
    legend_above(figure, grid[0, 0], title=scan.title)
    return figure


def _stack(axes: Axes, group: Sequence[Summary]) -> None:
    at = range(len(group))
    bottom = [0.0] * len(group)
    for name, label, colour in _PARTS:
        values = [_zero(getattr(one, name)) for one in group]
        axes.bar(at, values, bottom=bottom, width=0.72, color=colour, label=label)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    spread = [_zero(one.mean_deviation) for one in group]
    if any(spread):
        axes.errorbar(at, bottom, yerr=spread, fmt="none", ecolor="black", elinewidth=1.0, capsize=2.5)
    axes.set_xticks(list(at), [str(one.point.concurrency) for one in group])


def _scaling(scan: ScanView) -> Figure:
    """Draw speed-up and efficiency against the total number of instances, with the ideal."""
    groups = [scan.best(servers) for servers in scan.servers]
    base = min((one for group in groups for one in group), key=lambda one: (_total(one), one.point.servers))
    figure = new_figure(7.6, 3.7, note=scan.note("at the concurrency that gave most"))
    left, right = figure.subplots(1, 2)
    totals = sorted({_total(one) for group in groups for one in group})
    left.plot(totals, [one / _total(base) for one in totals], color=GREY, linestyle="--", linewidth=1.2, label="ideal")
    right.axhline(100.0, color=GREY, linestyle="--", linewidth=1.2)
    speeds, shares = [], []
    for place, (servers, group) in enumerate(zip(scan.servers, groups, strict=True)):
        ratios = [_ratio(one, base) for one in group]
        ideal = [_total(one) / _total(base) for one in group]
        speeds.append(_series(group, ratios, place, _count(servers, "server")))
        parts = [(100 * y / of, 100 * spread / of) for (y, spread), of in zip(ratios, ideal, strict=True)]
        shares.append(_series(group, parts, place))
    draw(left, speeds)
    draw(right, shares)
    for axes in (left, right):
        number_axis(axes, totals)
        axes.set_ylim(bottom=0)
    finish_axes(left, x="instances of all servers", y=f"speed-up over {_count(_total(base), 'instance')}")
    finish_axes(right, x="instances of all servers", y="efficiency against ideal [%]")
    legend_above(figure, left, title=scan.title)
    return figure


def _service_direct(scan: ScanView) -> Figure:
    """Compare the service with the same pipeline in processes without a server, on the same machine."""
    figure = new_figure(4.8, 5.2, note=scan.note("service at the concurrency that gave most"))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    alone = {one.point.instances: one for one in scan.direct}
    rates = [_rates(list(alone.values()), list(alone), len(COLOURS) - 1, "no server: processes")]
    shares = []
    for place, servers in enumerate(scan.servers):
        group = scan.best(servers)
        rates.append(_rates(group, [_total(one) for one in group], place, _count(servers, "server")))
        compared = [one for one in group if _total(one) in alone]
        shares.append(_series(compared, [_ratio(one, alone[_total(one)]) for one in compared], place))
    draw(above, rates)
    draw(below, shares)
    below.axhline(1.0, color=GREY, linestyle="--", linewidth=1.2)
    finish_axes(above, y=_RATE)
    finish_axes(below, x="instances of all servers, or processes", y="service / no server")
    number_axis(below, [*alone, *(_total(one) for one in scan.served)])
    above.set_ylim(bottom=0)
    below.set_ylim(bottom=0)
    legend_above(figure, above, title=scan.title)
    return figure


def _rates(group: Sequence[Summary], x: Sequence[float], place: int, label: str) -> Series:
    spread = [_zero(one.deviation) for one in group]
    return Series(x=x, y=[one.events_per_s for one in group], spread=spread, place=place, label=label)


def _series(group: Sequence[Summary], values: Sequence[tuple[float, float]], place: int, label: str = "") -> Series:
    """Return values and their spreads against the total number of instances."""
    x, y = [_total(one) for one in group], [value for value, _ in values]
    return Series(x=x, y=y, spread=[spread for _, spread in values], place=place, label=label)


def _total(one: Summary) -> int:
    return one.point.servers * one.point.instances


def _ratio(one: Summary, other: Summary) -> tuple[float, float]:
    """Return the ratio of two rates and its propagated standard deviation; 0 for a point over itself.

    The ratio to a rate of 0 is NaN, which a figure leaves out.
    """
    if not other.events_per_s:
        return math.nan, 0.0
    ratio = one.events_per_s / other.events_per_s
    if one is other:
        return ratio, 0.0
    return ratio, ratio * math.hypot(
        *(_zero(part.deviation) / part.events_per_s for part in (one, other) if part.events_per_s)
    )


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
