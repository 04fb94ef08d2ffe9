"""What a run gave: the figures, as JSON and as a table, and the bar that shows it on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exatrkx_hpc.errors import IncompleteRun, InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An event without labels: its name, the kind of failure and the reason, one line.

    The kinds are `input` (the event), `model` (its answer), `endpoint` (nothing useful answered in time) and
    `worker` (its worker died each time).
    """

    event: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds from the first attempt of a request to its labels, repeats and pauses included."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the figures of a list of times in seconds; all 0 when it is empty."""
        if not seconds:
            return cls()
        times = 1000.0 * np.asarray(seconds, dtype=np.float64)
        p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
        return cls(mean=float(times.mean()), p50=p50, p95=p95, p99=p99)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one run.

    `events` were found, `done` of them have a label file, `failed` were tried and have none; what is left was
    not tried, because the run was `stopped` (the reason, one line, or None). `seconds` is the wall time from
    the start of the workers to the last answer, `workers` how many events each of them did, `retries` how
    often a request was repeated after gRPC's own repeats.
    """

    server: str
    model: str
    events: int
    done: int
    failed: tuple[Failed, ...]
    hits: int
    seconds: float
    latency_ms: Latency
    retries: int
    workers: tuple[int, ...]
    stopped: str | None = None

    @property
    def events_per_second(self) -> float:
        """Events with labels per second of wall time."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def not_tried(self) -> int:
        """Events that the run did not come to."""
        return self.events - self.done - len(self.failed)

    def check(self) -> None:
        """Return when every event has labels; raise IncompleteRun, with the first reason, when not."""
        if self.done == self.events and self.stopped is None:
            return
        reasons = [self.stopped] if self.stopped else []
        reasons += [f"first failure: {self.failed[0].event}: {self.failed[0].reason}"] if self.failed else []
        raise IncompleteRun("; ".join([f"{self.done} of {self.events} events have labels", *reasons]))

    def to_json(self) -> str:
        """Return the report as a JSON object, indented, with a newline at its end."""
        fields = dataclasses.asdict(self)
        fields["events_per_second"] = self.events_per_second
        fields["not_tried"] = self.not_tried
        return json.dumps(fields, indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Return the report that a run wrote to OUT/report.json; raise InputError when it is none."""
    try:
        fields = json.loads(path.read_text())
        del fields["events_per_second"], fields["not_tried"]
        fields["failed"] = tuple(Failed(**failed) for failed in fields["failed"])
        fields["latency_ms"] = Latency(**fields["latency_ms"])
        fields["workers"] = tuple(fields["workers"])
        return Report(**fields)
    except OSError as error:
        raise InputError(f"cannot read the report {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of run-clients ({error})") from error


def render_table(report: Report) -> Table:
    """Return the closing table of a run, for a rich console."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="run-clients", show_header=False)
    latency = report.latency_ms
    rows = [
        ("endpoint", f"{report.server} ({report.model})"),
        ("events", f"{report.done} of {report.events}"),
        ("failed", str(len(report.failed))),
        *([("stopped", f"{report.stopped} ({report.not_tried} not tried)")] if report.stopped else []),
        ("wall time", f"{report.seconds:.2f} s"),
        ("events/s", f"{report.events_per_second:.1f}"),
        ("hits", str(report.hits)),
        ("latency p50 / p95 / p99", f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f} ms"),
        ("latency mean", f"{latency.mean:.1f} ms"),
        ("retries", str(report.retries)),
        ("events per worker", " ".join(str(count) for count in report.workers)),
        *[(f"  {failed.event}", f"{failed.kind}: {failed.reason}") for failed in report.failed[:10]],
    ]
    if len(report.failed) > 10:
        rows.append(("", f"and {len(report.failed) - 10} more failed; report.json lists them all"))
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # Text: a reason with [brackets] is no markup
    return table


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How far a run is: events in all, done and failed so far."""

    events: int
    done: int
    failed: int


ShowProgress = Callable[[Tally], None]
"""What `run_clients` calls after each event."""


@contextlib.contextmanager
def progress_bar(*, quiet: bool = False, console: Console | None = None, every: float = 10.0) -> Iterator[ShowProgress]:
    """Give a function that shows a Tally on stderr: a bar on a terminal, else a line each `every` seconds.

    With `quiet` it shows nothing.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    if quiet:
        yield lambda tally: None
    elif console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield _lines(console, every)


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[ShowProgress]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("events"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[failed]} failed"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("events", total=None, failed=0)
        yield lambda tally: bar.update(
            task, total=tally.events, completed=tally.done + tally.failed, failed=tally.failed
        )


def _lines(console: Console, every: float) -> ShowProgress:
    last = time.monotonic()

    def show(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            console.print(f"{tally.done} of {tally.events} events, {tally.failed} failed", highlight=False)

    return show
