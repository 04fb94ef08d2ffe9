"""Numbers, shares and times as a person writes them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Return a number with three digits that count, and commas between thousands: 0.0123, 4.57, 1,235,000."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def percent(share: float) -> str:
    """Return a share, 0 to 1, in per cent with one digit behind the point."""
    return f"{100.0 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return a time in the units that a person would choose: 0.5 s, 1 min 30 s, 2 h 14 min."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if rest else f"{minutes} min"
