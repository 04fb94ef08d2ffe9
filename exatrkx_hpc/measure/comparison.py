"""Several scans in one figure: two models, sync and async calls, two machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ConfigError, InputError
from exatrkx_hpc.measure.bench_table import Row
from exatrkx_hpc.measure.figure_file import (
    COLOURS,
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

NAME: Final = "comparison"
#: One line per distinguishable colour.
MOST: Final = len(COLOURS)


def save_comparison(
    scans: Mapping[str, Sequence[Row]],
    folder: Path,
    *,
    formats: Sequence[str] = ("png", "svg", "pdf"),
    title: str = "",
) -> list[Path]:
    """Write the figure `comparison`, events per second and p95 latency against requests in flight; return its paths.

    `scans` has the rows of each scan by its name. Each placement of each scan is a line. Raises ConfigError for more
    lines than colours, InputError for a scan without a server, MissingComponent without matplotlib, OutputError when a
    file cannot be written.
    """
    lines = _lines(scans)
    if len(lines) > MOST:
        raise ConfigError(f"{len(lines)} lines are more than {MOST} in one figure; compare scans of fewer placements")
    every = [one for group in lines.values() for one in group]
    view = ScanView(served=tuple(every), direct=(), title=title)
    figure = new_figure(8.0, 3.9, note=view.note("perf_analyzer at the endpoint"))
    left, right = figure.subplots(1, 2)
    rates, delays = [], []
    for place, (label, group) in enumerate(lines.items()):
        x = [one.point.concurrency for one in group]
        rates.append(_series(group, x, [one.events_per_s for one in group], place, label))
        delays.append(Series(x=x, y=[one.p95_ms for one in group], spread=[0.0] * len(group), place=place))
    for axes, series, name in ((left, rates, "events per second"), (right, delays, "p95 latency [ms]")):
        draw(axes, series, logarithmic=True)
        number_axis(axes, [one.point.concurrency for one in every], logarithmic=True)
        finish_axes(axes, x="requests in flight", y=name)
        axes.set_ylim(bottom=0)
    legend_above(figure, left, title=title)
    written = [folder / f"{NAME}.{suffix}" for suffix in formats]
    for path in written:
        save_figure(figure, path)
    return written


def _series(group: Sequence[Summary], x: Sequence[float], y: Sequence[float], place: int, label: str) -> Series:
    spread = [one.deviation if one.repetitions > 1 else 0.0 for one in group]
    return Series(x=x, y=y, spread=spread, place=place, label=label)


def _lines(scans: Mapping[str, Sequence[Row]]) -> dict[str, list[Summary]]:
    """Return the points of each placement of each scan, by a label with the differences to the others."""
    labels = _labels(scans)
    lines: dict[str, list[Summary]] = {}
    for name, rows in scans.items():
        served = [one for one in summaries(rows) if one.point.kind == "service"]
        if not served:
            raise InputError(f"{name} has no point with a server; resume the scan with 'exatrkx-hpc bench'")
        for one in served:
            place = f"{one.point.servers}x{one.point.instances}"
            lines.setdefault(f"{labels[name]}, {place}", []).append(one)
    if len({label.rpartition(", ")[2] for label in lines}) == 1:  # if all lines have the same placement, omit it
        return {label.rpartition(", ")[0]: group for label, group in lines.items()}
    return lines


def _labels(scans: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Return a label for each scan: model and calls if they differ; with the scan's name if that is ambiguous."""
    facts = {name: _facts(rows) for name, rows in scans.items()}
    differing = [place for place in (0, 1) if len({one[place] for one in facts.values()}) > 1]
    labels = {name: ", ".join(one[place] for place in differing if one[place]) for name, one in facts.items()}
    if len(set(labels.values())) < len(labels) or not all(labels.values()):
        return {name: ", ".join(part for part in (name, labels[name]) if part) for name in labels}
    return labels


def _facts(rows: Sequence[Row]) -> tuple[str, str]:
    served = [row for row in rows if row.kind == "service"] or list(rows)
    return served[0].model, served[0].calls or "default"
