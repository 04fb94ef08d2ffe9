"""The progress of a run: a live table on a terminal, a line in a notebook, or a log line at intervals."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.readable import duration
from exatrkx_hpc.work.run.silence import Silence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

REFRESHES: Final = 4
"""Refreshes of the table per second."""

_WINDOW: Final = 10.0
_SAMPLE: Final = 0.25
_MEMBERS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Progress of a run: events in total, done and failed, including those of earlier runs into the same folder.

    `retries` counts retried requests, also of events without a result, `in_flight` the requests in flight, `members`
    the events of each server in this run, where known. `members` may be a live view that later events change.
    `silence` describes a time without any result, if there is one now.
    """

    events: int
    done: int
    failed: int
    retries: int = 0
    in_flight: int = 0
    members: Mapping[str, int] = field(default_factory=dict)
    silence: Silence | None = None

    @property
    def left(self) -> int:
        """Events that are neither done nor failed."""
        return self.events - self.done - self.failed


ShowProgress = Callable[[Tally], None]
"""Callback of `run_clients`, called at the start, after each event, and twice per second while no server answers."""


class Pace:
    """Rates of a run, from its tallies; the first tally marks the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure time with `clock`, in seconds."""
        self._clock = clock
        self._samples: deque[tuple[float, Tally]] = deque()
        self._first: tuple[float, Tally] | None = None
        self._end: float | None = None
        self.tally: Tally | None = None

    def note(self, tally: Tally) -> None:
        """Add the newest tally."""
        now = self._clock()
        self._first = self._first or (now, tally)
        self.tally = tally
        self._end = None if tally.left else now
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE:
            self._samples.append((now, tally))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()

    @property
    def mean(self) -> float | None:
        """Events done per second since the start; None while unknown."""
        return self._since(self._first)

    @property
    def now(self) -> float | None:
        """Events done per second in about the last 10 s, up to now; None while unknown."""
        return self._since(self._samples[0] if self._samples else None)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends at the current rate; None while the rate is 0 or unknown."""
        pace = self.now
        return self.tally.left / pace if self.tally is not None and pace else None

    def _since(self, sample: tuple[float, Tally] | None) -> float | None:
        if sample is None or self.tally is None:
            return None
        at, before = sample
        seconds = (self._clock() if self._end is None else self._end) - at
        return (self.tally.done - before.done) / seconds if seconds > 0 else None


class ProgressTable:
    """The live display of a run on a terminal; rich renders it at each refresh."""

    def __init__(self, pace: Pace) -> None:
        """Show the current values of `pace`."""
        self._pace = pace

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        tally = self._pace.tally
        if tally is None:
            return "getting ready"
        parts: list[RenderableType] = [self._bar(tally), self._figures(tally)]
        if tally.silence is not None:
            parts.append(Text(silent(tally.silence), style="yellow"))
        if known := {name: count for name, count in list(tally.members.items()) if name and count}:
            parts.append(_members(known))
        return Group(*parts)

    def _bar(self, tally: Tally) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        over = tally.done + tally.failed
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        share = f"{100.0 * over / tally.events:.1f} %" if tally.events else ""
        bar.add_row("events", ProgressBar(total=max(tally.events, 1), completed=over), f"{over}/{tally.events} {share}")
        return bar

    def _figures(self, tally: Tally) -> Table:
        from rich.table import Table

        pace = self._pace
        values = {
            "done": f"{tally.done:,}",
            "failed": f"{tally.failed:,}",
            "retries": f"{tally.retries:,}",
            "in flight": f"{tally.in_flight:,}",
            "events/s now": _rate(pace.now),
            "events/s mean": _rate(pace.mean),
            "time left": time_left(pace.seconds_left),
        }
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in values:
            table.add_column(name, justify="right", header_style="dim", no_wrap=True)
        table.add_row(*values.values())
        return table


def _members(counts: Mapping[str, int]) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows = sorted(counts.items(), key=lambda row: -row[1])
    if len(rows) > _MEMBERS:
        shown = rows[: _MEMBERS - 1]
        rows = [*shown, (f"{len(rows) - len(shown)} others", sum(count for _, count in rows[len(shown) :]))]
    whole = sum(counts.values())
    table = Table.grid(padding=(0, 1))
    for name, count in rows:
        bar = ProgressBar(total=whole, completed=count, width=24)
        table.add_row(Text(name), bar, f"{100.0 * count / whole:.0f} %", f"{count:,}")
    return table


def _rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:,.1f}"


def silent(silence: Silence) -> str:
    """Say how long there has been no result, how often it was tried, and when the run gives up."""
    since, left = duration(round(silence.seconds)), duration(round(silence.left))
    return f"no server answers for {since}, tried {silence.tried} times, gives up in {left}"


def time_left(seconds: float | None) -> str:
    """Format a time, rounded to whole seconds; a dash when it is unknown."""
    return "–" if seconds is None else duration(round(seconds))


@contextlib.contextmanager
def progress_bar(
    *,
    quiet: bool = False,
    console: Console | None = None,
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ShowProgress]:
    """Yield a function that shows a Tally on stderr: a live table on a terminal, else a line every `every` seconds.

    The table disappears at the end of the block. A notebook shows one line, which is updated and stays. With `quiet`,
    nothing is shown.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    pace = Pace(clock)
    if quiet:
        yield lambda tally: None
    elif console.is_terminal:
        from rich.live import Live

        # Output of the program appears above the table. A redirected stdout is left alone.
        above = sys.stdout.isatty()
        with Live(
            ProgressTable(pace), console=console, refresh_per_second=REFRESHES, transient=True, redirect_stdout=above
        ):
            yield pace.note
    elif console.is_jupyter:
        yield _changing_line(pace, clock)
    else:
        yield _lines(console, pace, every, clock)


def _lines(console: Console, pace: Pace, every: float, clock: Callable[[], float]) -> ShowProgress:
    last = clock()

    def show(tally: Tally) -> None:
        nonlocal last
        pace.note(tally)
        now = clock()
        if now - last >= every:
            last = now
            console.print(_line(pace, tally), highlight=False)

    return show


def _changing_line(pace: Pace, clock: Callable[[], float]) -> ShowProgress:
    # rich's live display in a notebook needs ipywidgets, also in the browser.
    from IPython.display import display  # type: ignore[import-not-found]  # a notebook has it

    line = display({"text/plain": "getting ready"}, raw=True, display_id=True)
    last = -float("inf")

    def show(tally: Tally) -> None:
        nonlocal last
        pace.note(tally)
        now = clock()
        if now - last >= 1 / REFRESHES or not tally.left:
            last = now
            line.update({"text/plain": _line(pace, tally)}, raw=True)

    return show


def _line(pace: Pace, tally: Tally) -> str:
    says = [f"{tally.done} of {tally.events} events", f"{tally.failed} failed"]
    says += [f"{tally.retries} retries"] if tally.retries else []
    if pace.now is not None:
        says += [f"{pace.now:.1f} events/s", f"{time_left(pace.seconds_left)} left"]
    says += [silent(tally.silence)] if tally.silence is not None else []
    return ", ".join(says)
