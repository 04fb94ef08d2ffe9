"""Plot rates in bins: points with their uncertainties, one panel per rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exatrkx_hpc.base.errors import MissingComponent, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg", "pdf"]
_BLUE, _GREY = "#1f5fa8", "#8a8a8a"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One rate in B bins: title, axis label, edges `[B + 1]`, and values with low and high ends `[B]`.

    An empty bin is nan. `logarithmic` is for the axis; `marked` draws a line at a value of the axis, with its label.
    """

    title: str
    axis: str
    edges: Sequence[float]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    logarithmic: bool = False
    marked: tuple[float, str] | None = None


def save_panels(path: Path, panels: Sequence[Panel], *, heading: str) -> None:
    """Write the panels, two in a row, as one figure; the suffix of `path` selects PNG, SVG or PDF.

    Horizontal bars are the widths of the bins, vertical bars the uncertainties. A panel shows only the range of its
    bars, extended to 0 or 1 if they are near. Raises MissingComponent without matplotlib, OutputError when the file
    cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingComponent(f"plots need matplotlib ({error}); pip install 'exatrkx-hpc[plots]'") from error
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(9.0, 0.6 + 3.2 * rows), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=11)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for place, panel in zip(axes, panels, strict=False):
        _draw(place, panel)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    _save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.logarithmic:
        _logarithmic(axes, panel.edges)
    bins = [place for place, value in enumerate(panel.value) if not math.isnan(value)]
    if bins:
        _draw_bins(axes, panel, bins)
    else:
        axes.text(0.5, 0.5, "nothing to count", transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.axis, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_bins(axes: Axes, panel: Panel, bins: Sequence[int]) -> None:
    """Draw the non-empty bins and limit the axes to them."""
    left, right = ([panel.edges[place + side] for place in bins] for side in (0, 1))
    value, low, high = ([column[place] for place in bins] for column in (panel.value, panel.low, panel.high))
    middle = [_middle(*ends, panel.logarithmic) for ends in zip(left, right, strict=True)]
    across = [_distances(middle, left), _distances(right, middle)]
    along = [_distances(value, low), _distances(high, value)]
    axes.errorbar(middle, value, xerr=across, yerr=along, fmt="o", color=_BLUE, markersize=3.5, linewidth=1.1)
    axes.set_xlim(left[0], right[-1])
    axes.set_ylim(*_limits(min(low), max(high)))
    if panel.marked is not None and left[0] < panel.marked[0] < right[-1]:
        axes.axvline(panel.marked[0], color=_GREY, linewidth=1.0, linestyle="--", label=panel.marked[1])
        axes.legend(loc="best", fontsize=8, frameon=False)


def _distances(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    return [max(above - below, 0.0) for above, below in zip(upper, lower, strict=True)]


def _logarithmic(axes: Axes, edges: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(edges)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _middle(low: float, high: float, logarithmic: bool) -> float:
    return math.sqrt(low * high) if logarithmic else 0.5 * (low + high)


def _limits(low: float, high: float) -> tuple[float, float]:
    """Return axis limits that include every bar, and 0 or 1 if the rate is near."""
    span = max(high - low, 0.02)
    bottom = 0.0 if low < span else low - 0.12 * span
    top = 1.0 if high > 1.0 - span else high + 0.12 * span
    margin = 0.04 * (top - bottom)  # so that a point on 0 or 1 is not cut in half
    return bottom - margin, top + margin


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No date, so that the same figures give the same file.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
        figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
