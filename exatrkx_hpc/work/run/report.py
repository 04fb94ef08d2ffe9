"""The report of a run: its figures, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.errors import IncompleteRun, InputError
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency

if TYPE_CHECKING:
    from rich.table import Table


#: Properties that the JSON has, too, for those who read it.
_COMPUTED: Final = ("done_now", "events_per_second", "failures", "not_tried")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one run.

    `events` are in the folder, `done` of them have a result, `done_before` of these by earlier runs, which the
    ledger knows of. What failed has none: `failed` are the first of them, `more_failed` the number of the others,
    `failed_before` how many of all were in quarantine already and were passed over. What is left was not tried,
    because the run was `stopped` (the reason, one line, or None).

    The other figures are of this run alone: `seconds` is the wall time from the start of the workers to the last
    answer, `items` how many of the kind `item` (hits) its events had, `counts` what its results count (tracks),
    `stages_ms` the mean time of each stage where the stages were asked one by one, `ignored_first` how many events at
    the run's beginning are in neither `latency_ms` nor `stages_ms`. `workers` is how many events each of them did,
    `members` how many each server answered, where the balancer says so, `retries` how often a request was repeated
    after gRPC's own repeats. A run over several nodes has `nodes`, how many events each of them did, and no `workers`.
    `mode` is how results were made, with the models `model`, whose version is `version` as far as the server says; in
    mode `direct` there is no server, and `server` is the model repository. `units` says what the events look like when
    their units are not those of the service.
    """

    server: str
    model: str
    events: int
    done: int
    failed: tuple[Failed, ...]
    seconds: float
    latency_ms: Latency
    retries: int
    workers: tuple[int, ...]
    stopped: str | None = None
    item: str = "hits"
    items: int = 0
    mode: str = "ensemble"
    version: str = ""
    done_before: int = 0
    more_failed: int = 0
    failed_before: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    ignored_first: int = 0
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    members: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)
    units: str = ""

    @property
    def done_now(self) -> int:
        """Events that this run gave a result."""
        return self.done - self.done_before

    @property
    def events_per_second(self) -> float:
        """Events that got a result per second of wall time."""
        return self.done_now / self.seconds if self.seconds > 0 else 0.0

    @property
    def failures(self) -> int:
        """Events that failed, those of earlier runs that were not tried again included."""
        return len(self.failed) + self.more_failed

    @property
    def not_tried(self) -> int:
        """Events that no run came to."""
        return self.events - self.done - self.failures

    def check(self) -> None:
        """Return when every event has a result; raise IncompleteRun, with the first reason, when not."""
        if self.done == self.events and self.stopped is None:
            return
        reasons = [self.stopped] if self.stopped else []
        reasons += [f"first failure: {self.failed[0].event}: {self.failed[0].reason}"] if self.failed else []
        raise IncompleteRun("; ".join([f"{self.done} of {self.events} events have results", *reasons]))

    def to_json(self) -> str:
        """Return the report as a JSON object, indented, with a newline at its end."""
        fields = dataclasses.asdict(self)
        fields |= {name: getattr(self, name) for name in _COMPUTED}
        return json.dumps(fields, indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Return the report that a run wrote to OUT/report.json; raise InputError when it is none."""
    try:
        fields = json.loads(path.read_text())
        for name in _COMPUTED:
            del fields[name]
        fields["failed"] = tuple(Failed(**failed) for failed in fields["failed"])
        fields["latency_ms"] = Latency(**fields["latency_ms"])
        fields["workers"] = tuple(fields["workers"])
        return Report(**fields)
    except OSError as error:
        raise InputError(f"cannot read the report {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run-clients report ({error})") from error


def render_table(report: Report) -> Table:
    """Return the closing table of a run, for a rich console."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="run-clients", show_header=False)
    latency = report.latency_ms
    rows = [
        ("repository" if report.mode == "direct" else "endpoint", f"{report.server} ({report.model})"),
        ("mode", report.mode),
        ("events", f"{report.done} of {report.events}" + _split(report.done_before, report.done_now)),
        ("failed", str(report.failures) + _split(report.failed_before, report.failures - report.failed_before)),
        *([("stopped", f"{report.stopped} ({report.not_tried} not tried)")] if report.stopped else []),
        *([("units", report.units)] if report.units else []),
        ("wall time", f"{report.seconds:.2f} s"),
        ("events/s", f"{report.events_per_second:.1f}"),
        (report.item, str(report.items)),
        *[(name, str(number)) for name, number in report.counts.items()],
        ("latency p50 / p95 / p99", f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f} ms"),
        ("latency mean", f"{latency.mean:.1f} ms"),
        *([("stages mean", _stages(report.stages_ms))] if report.stages_ms else []),
        *([("latency without", f"the first {report.ignored_first} events")] if report.ignored_first else []),
        ("retries", str(report.retries)),
        *([("events per worker", " ".join(str(count) for count in report.workers))] if report.workers else []),
        *([("events per node", _shares(report.nodes))] if report.nodes else []),
        *([("events per server", _shares(report.members))] if report.members else []),
        *[(f"  {failed.event}", f"{failed.kind}: {failed.reason}") for failed in report.failed[:10]],
    ]
    if report.failures > 10:
        rows.append(("", f"and {report.failures - 10} more failed; see report.json and the ledger"))
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # Text: a reason with [brackets] is no markup
    return table


def _stages(means: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {mean:.1f}" for stage, mean in means.items()) + " ms"


def _shares(members: Mapping[str, int]) -> str:
    return ", ".join(f"{member} {number}" for member, number in members.items())


def _split(before: int, now: int) -> str:
    return f" ({before} before, {now} now)" if before else ""
