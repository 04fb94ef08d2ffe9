"""The charts of the page as inline SVG: a rate over time, a distribution, and shares as bars.

The charts use only the page's style classes (`area`, `line`, `bar`, `grid`, `mark`, …), so they follow its dark and
light colours. They contain no script and no external reference.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from exatrkx_hpc.base.readable import number, percent
from exatrkx_hpc.page.svg import Scale, drawing, element, linear, logarithmic, path, text

WIDTH: Final = 720.0
_HEIGHT: Final = 306.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 78.0, 704.0, 28.0, 252.0
_BAR, _GAP = 22.0, 9.0
_LETTER: Final = 7.8
"""An upper estimate of the width of a letter in the charts, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The id of a chart's figure, its title, and a description for screen readers."""

    name: str
    title: str
    description: str

    def draw(self, *inside: str, height: float = _HEIGHT) -> str:
        """Return the chart as SVG."""
        return drawing(
            *inside, name=self.name, title=self.title, description=self.description, width=WIDTH, height=height
        )


def rate_over_time(
    chart: Chart, rates: Sequence[float], edges: Sequence[float], *, unit: str, mean: float, begins: Sequence[float]
) -> str:
    """Return a stepped area of `rates` `[N]`, in events per second, between the times `edges` `[N+1]` in `unit`.

    `mean` is a horizontal line with its value. Each time in `begins` is a vertical line: a run began there.
    """
    x = linear(edges[-1], start=_LEFT, end=_RIGHT, most=8)
    y = linear(max([*rates, mean]), start=_BOTTOM, end=_TOP, fit=True)
    tops = [
        (x(at), y(rate)) for rate, (left, right) in zip(rates, pairwise(edges), strict=True) for at in (left, right)
    ]
    bins = [
        element("rect", _hint(f"{number(left)} to {number(right)} {unit}: {number(rate)} events/s"),
                class_="hover", x=x(left), y=_TOP, width=max(x(right) - x(left), 0.1), height=_BOTTOM - _TOP)
        for rate, (left, right) in zip(rates, pairwise(edges), strict=True)
    ]  # fmt: skip
    words = f"mean {number(mean)} events/s"
    width = _LETTER * len(words)
    return chart.draw(
        *_axes(x, y, x_label=f"running time [{unit}]", y_label="throughput [events/s]"),
        element("path", class_="area", d=path([(x(edges[0]), _BOTTOM), *tops, (x(edges[-1]), _BOTTOM)]) + "Z"),
        element("path", class_="line", d=path(tops)),
        *(_upright(x(at), "mark faint", "a run began here") for at in begins),
        element("line", class_="mark", x1=_LEFT, x2=_RIGHT, y1=y(mean), y2=y(mean)),
        text(words, _RIGHT, _TOP - 10, class_="note", text_anchor="end"),
        element("line", class_="mark", x1=_RIGHT - width - 30, x2=_RIGHT - width - 6, y1=_TOP - 15, y2=_TOP - 15),
        *bins,
    )


def distribution(
    chart: Chart, counts: Sequence[int], edges: Sequence[float], *, unit: str, marks: Mapping[str, float]
) -> str:
    """Return a histogram of `counts` `[N]` between `edges` `[N+1]`, above 0 and in `unit`, on a logarithmic axis.

    Each of `marks` (name → value) is a vertical line with its name and value.
    """
    x = logarithmic(edges[0], edges[-1], start=_LEFT, end=_RIGHT)
    # One row of text per mark above the highest bar, so that no mark covers another.
    top = _TOP + 18.0 * len(marks)
    y = linear(max(counts), start=_BOTTOM, end=top, most=5, whole=True)
    bars = [
        element("rect", _hint(f"{number(left)} to {number(right)} {unit}: {count:,} events"),
                class_="bar", x=x(left), y=y(count), height=_BOTTOM - y(count),
                width=max(x(right) - x(left) - 0.6, 0.4))
        for count, (left, right) in zip(counts, pairwise(edges), strict=True) if count
    ]  # fmt: skip
    lines = []
    for row, (name, value) in enumerate(marks.items()):
        words, at, height = f"{name} {number(value)} {unit}", x(value), _TOP + 18.0 * row
        aside, anchor = (5.0, "start") if at + 12 + _LETTER * len(words) < _RIGHT else (-5.0, "end")
        lines.append(element("line", class_="mark", x1=at, x2=at, y1=height - 6, y2=_BOTTOM))
        lines.append(text(words, at + aside, height + 4, class_="note", text_anchor=anchor))
    return chart.draw(*_axes(x, y, x_label=f"latency [{unit}]", y_label="events"), *bars, *lines)


def shares(chart: Chart, values: Mapping[str, float], *, unit: str, total: str, most: int = 24) -> str:
    """Return a bar for each of `values`, with its share of their sum and its value in `unit`.

    `total` names the sum. With more than `most` values, the last bar is the sum of the remaining ones.
    """
    rows = list(values.items())
    if len(rows) > most:
        rows = [*rows[: most - 1], (f"{len(rows) - most + 1} others", sum(value for _, value in rows[most - 1 :]))]
    whole = sum(values.values()) or 1.0
    left = 20.0 + _LETTER * min(max(len(name) for name, _ in rows), 34)
    x = linear(max(value for _, value in rows) / whole, start=left, end=_RIGHT - 170.0, most=5)
    inside = []
    for row, (name, value) in enumerate(rows):
        y, says = 8.0 + row * (_BAR + _GAP), f"{percent(value / whole)}, {number(value)} {unit}"
        inside += [
            text(_short(name), left - 10, y + 16, class_="label", text_anchor="end"),
            element("rect", _hint(f"{name}: {says}"), class_="bar", x=left, y=y, rx=2, height=_BAR,
                    width=max(x(value / whole) - left, 1.0)),
            text(says, max(x(value / whole), left + 1) + 8, y + 16, class_="note"),
        ]  # fmt: skip
    bottom = 8.0 + len(rows) * (_BAR + _GAP)
    inside.append(element("line", class_="axis", x1=left, x2=left, y1=2.0, y2=bottom - 4))
    inside.append(text(f"share of {total}", left, bottom + 16, class_="caption"))
    return chart.draw(*inside, height=bottom + 26)


def _axes(x: Scale, y: Scale, *, x_label: str, y_label: str) -> list[str]:
    drawn = [element("line", class_="axis", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM)]
    for tick in y.ticks:
        drawn.append(element("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick)))
        drawn.append(text(number(tick), _LEFT - 8, y(tick) + 4, class_="label", text_anchor="end"))
    for tick in x.ticks:
        drawn.append(element("line", class_="axis", x1=x(tick), x2=x(tick), y1=_BOTTOM, y2=_BOTTOM + 5))
        drawn.append(text(number(tick), x(tick), _BOTTOM + 20, class_="label", text_anchor="middle"))
    middle = (_TOP + _BOTTOM) / 2
    drawn.append(text(x_label, (_LEFT + _RIGHT) / 2, _BOTTOM + 42, class_="caption", text_anchor="middle"))
    turned = f"rotate(-90 16 {middle:g})"
    drawn.append(text(y_label, 16.0, middle, class_="caption", text_anchor="middle", transform=turned))
    return drawn


def _upright(x: float, style: str, words: str) -> str:
    return element("line", _hint(words), class_=style, x1=x, x2=x, y1=_TOP, y2=_BOTTOM)


def _hint(words: str) -> str:
    """Return the tooltip of an element."""
    return element("title", html.escape(words))


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:16] + "…" + name[-17:]
