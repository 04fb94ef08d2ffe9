"""Build SVG: elements with escaped values, and scales with round ticks."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

_ROUND: Final = (1.0, 2.0, 5.0, 10.0)


def element(name: str, *inside: str, **attributes: object) -> str:
    """Return `<name …>…</name>`; attribute values are escaped, `inside` must be SVG.

    `class_` becomes `class`; an underscore inside an attribute name becomes a hyphen.
    """
    words = [name]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(shown)}"')
    return f"<{' '.join(words)}>{''.join(inside)}</{name}>"


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """Return a text at a position; `words` are escaped."""
    return element("text", html.escape(words), x=x, y=y, **attributes)


def drawing(*inside: str, name: str, title: str, description: str, width: float, height: float) -> str:
    """Return a complete inline SVG with a title and a description for screen readers."""
    heads = (
        element("title", html.escape(title), id=f"{name}-title"),
        element("desc", html.escape(description), id=f"{name}-text"),
    )
    return element(
        "svg",
        *heads,
        *inside,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
    )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values to pixels: `low` to `start`, `high` to `end`; `ticks` are round values in between."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; a value outside is clamped to the nearer end."""
        inside = min(max(value, self.low), self.high)
        low, high, at = (self._measure(one) for one in (self.low, self.high, inside))
        share = (at - low) / (high - low) if high > low else 0.0
        return self.start + share * (self.end - self.start)

    @property
    def _measure(self) -> Callable[[float], float]:
        return math.log10 if self.logarithmic else float


def linear(high: float, *, start: float, end: float, most: int = 6, whole: bool = False, fit: bool = False) -> Scale:
    """Return a scale from 0 to `high`, or with `fit` to the next round value, with at most `most` steps between ticks.

    With `whole`, the ticks are whole numbers.
    """
    high = high if high > 0 and math.isfinite(high) else 1.0
    step = _step(high / most)
    if whole:
        step = max(1.0, step)
    number_of = math.ceil(high / step - 1e-9) if fit else math.floor(high / step + 1e-9)
    return Scale(
        low=0.0,
        high=max(number_of * step, high) if fit else high,
        start=start,
        end=end,
        ticks=tuple(place * step for place in range(number_of + 1)),
    )


def logarithmic(low: float, high: float, *, start: float, end: float) -> Scale:
    """Return a logarithmic scale from `low` to `high`, both above 0.

    The ticks are powers of ten; below three decades also 2 and 5 times these; below one decade equidistant round
    values.
    """
    ratio = high / low
    if ratio < 10:
        step = _step((high - low) / 6 or low)
        ticks = tuple(place * step for place in range(math.floor(low / step), math.ceil(high / step) + 1))
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = _ROUND[:3] if ratio < 1000 else _ROUND[:1]
        ticks = tuple(step * 10.0**decade for decade in decades for step in steps)
    inside = tuple(tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9))
    return Scale(low=low, high=high, start=start, end=end, ticks=inside, logarithmic=True)


def path(points: Iterable[tuple[float, float]]) -> str:
    """Return the path attribute `d` of a line through pixels."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _ROUND if step * power >= least * (1 - 1e-9))
