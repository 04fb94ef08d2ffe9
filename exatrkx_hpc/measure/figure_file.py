"""Common parts of all figures: distinguishable colours, a canvas, and reproducible files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.errors import MissingComponent, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito (2008), Color Universal Design: distinguishable with any colour vision, and dark enough on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: Final = "#6e6e6e"
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_GRID: Final = "#e4e4e4"
#: No date and a fixed seed for names, so that the same figures give the same file; text stays text in a PDF.
_SETTINGS: Final = {"svg.hashsalt": "exatrkx-hpc", "pdf.fonttype": 42}
_METADATA: Final[dict[str, dict[str, None]]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points `[N]` with half the lengths of their error bars; `place` selects the colour and the marker.

    A series without a label is not in the legend.
    """

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]
    place: int
    label: str = ""


def new_figure(width: float, height: float, *, note: str = "") -> Figure:
    """Return an empty figure with `width` and `height` in inches, and the line `note` below it.

    Raises MissingComponent without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingComponent(f"plots need matplotlib ({error}); pip install 'exatrkx-hpc[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    if note:
        # supxlabel is the only text below the axes that the layout reserves space for; about 15 letters fit in an inch.
        fits = len(note) < 15 * width
        figure.supxlabel(note if fits else note.replace("; ", "\n"), fontsize=8, color=GREY)
    return figure


def finish_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Set labels and title, draw a light grid behind the data, and remove the top and right frame."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    if title:
        axes.set_title(title, fontsize=9.5)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def number_axis(axes: Axes, numbers: Sequence[int], *, logarithmic: bool = False) -> None:
    """Show exactly these integers as ticks of the x axis."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(numbers))))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw(axes: Axes, series: Sequence[Series], *, logarithmic: bool = False) -> None:
    """Draw the series, each shifted slightly along x, so that none hides another."""
    every = [x for one in series for x in one.x]
    span = max(every) - min(every) if every else 0.0
    for number, one in enumerate(series):
        aside = 0.012 * (number - (len(series) - 1) / 2)
        x = [at * 2 ** (2.5 * aside) if logarithmic else at + aside * max(span, 1.0) for at in one.x]
        axes.errorbar(
            x,
            one.y,
            yerr=one.spread if any(one.spread) else None,
            marker=MARKERS[one.place % len(MARKERS)],
            color=COLOURS[one.place % len(COLOURS)],
            label=one.label or None,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linewidth=1.4,
            elinewidth=1.0,
            capsize=2.5,
        )


def legend_above(figure: Figure, axes: Axes, *, title: str = "") -> None:
    """Put the legend of `axes` above all panels, where it covers nothing, below the title of the figure."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(figure.get_figwidth() / 1.25)))
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        handlelength=1.6,
        title=title or None,  # a suptitle would be at the same place
        title_fontsize=10,
    )
    figure.align_ylabels()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of `path` selects PNG, SVG or PDF. Raises OutputError on a write error."""
    from matplotlib import rc_context

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context(_SETTINGS):
            figure.savefig(path, metadata=_METADATA.get(path.suffix, {}))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
