"""Format numbers, shares, times, node names and long texts for people."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable


def names(hosts: Iterable[str]) -> str:
    """Return sorted host names, with numbers as ranges in Slurm's notation: nid[001-064], login1."""
    found: list[tuple[str, str, str, list[int]]] = []
    for name in sorted(set(hosts)):
        match = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", name, re.ASCII)
        before, digits, after = match.groups() if match else (name, "", "")
        last = found[-1] if found else None
        if last and digits and (last[0], len(last[1]), last[2]) == (before, len(digits), after):
            last[3].append(int(digits))
        else:
            found.append((before, digits, after, [int(digits)] if digits else []))
    return ", ".join(before + _numbers(row, len(digits)) + after for before, digits, after, row in found)


def _numbers(row: list[int], width: int) -> str:
    """Return rising numbers as text, `width` digits each: one number alone, several as ranges in brackets."""
    ranges: list[list[int]] = []
    for value in row:
        if ranges and value == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], value]
        else:
            ranges.append([value])
    shown = ["-".join(str(end).zfill(width) for end in ends) for ends in ranges]
    return f"[{','.join(shown)}]" if len(row) > 1 else "".join(shown)


def one_line(text: str, *, longest: int = 400) -> str:
    """Return `text` on one line, cut after `longest` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def number(value: float) -> str:
    """Return a number with three significant digits, or all of its integer part: 0.0123, 4.57, 1,234,567."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def percent(share: float) -> str:
    """Return a share (0 to 1) in percent, with one decimal place."""
    return f"{100.0 * share:.1f} %"


def size(count: float) -> str:
    """Return a number of bytes in a readable unit: 0 B, 64 KiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{number(count)} {unit}"
        count /= 1024
    return f"{number(count)} TiB"


def duration(seconds: float) -> str:
    """Return a duration in readable units: 0.5 s, 1 min 30 s, 2 h 14 min."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if rest else f"{minutes} min"


def moment(seconds: float, *, utc: bool = False) -> str:
    """Return a time in seconds since 1970 as local date and time, 2026-11-26 14:03:09, or in UTC."""
    if utc:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
