"""The report of a run: its figures, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.errors import IncompleteRun, InputError
from exatrkx_hpc.work.news import listed
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency

if TYPE_CHECKING:
    from rich.table import Table


#: Properties that the JSON contains in addition to the fields.
_COMPUTED: Final = ("done_now", "events_per_second", "failures", "not_tried")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one run.

    `events` counts the events of the folder, `done` those with a result, `done_before` those of earlier runs among
    them. `failed` lists the first events without a result, `more_failed` counts the others, `failed_before` counts
    those that were already in quarantine and were skipped. All other events were not tried because the run was
    `stopped` (the reason, one line, or None).

    The other figures describe this run only. `seconds` is the wall time from the start of the workers to the last
    answer. `items` is the number of items of the kind `item` (hits) in its events, `counts` the totals of its results
    (tracks). `stages_ms` is the mean time of each stage in mode `stages`. The first `ignored_first` events are in
    neither `latency_ms` nor `stages_ms`. `workers` counts the events of each worker, `members` those of each server
    where the balancer names it, `retries` the retries after gRPC's own. A run over several nodes has no `workers` but
    `nodes`, the events of each node. `mode` and `model` say how results were made; `version` is the model version, if
    the server reports one. In mode `direct`, `server` is the model repository. `units` describes the events when
    their units are not those of the service. `empty` counts the done events of 0 items, of all runs. `versions` counts
    the done events of each model version, if there are several.
    `passed_over` says what lies in the folder of events and is no event, by kind.
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
    versions: Mapping[str, int] = field(default_factory=dict)
    empty: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def done_now(self) -> int:
        """Events with a result from this run."""
        return self.done - self.done_before

    @property
    def events_per_second(self) -> float:
        """Events with a result from this run, per second of wall time."""
        return self.done_now / self.seconds if self.seconds > 0 else 0.0

    @property
    def failures(self) -> int:
        """Failed events, including those of earlier runs that were not retried."""
        return len(self.failed) + self.more_failed

    @property
    def not_tried(self) -> int:
        """Events that no run has tried."""
        return self.events - self.done - self.failures

    def check(self) -> None:
        """Raise IncompleteRun, with the first reason, if an event has no result or the run was stopped."""
        if self.done == self.events and self.stopped is None:
            return
        reasons = [self.stopped] if self.stopped else []
        reasons += [f"first failure: {self.failed[0].event}: {self.failed[0].reason}"] if self.failed else []
        if any(not failed.for_itself for failed in self.failed):
            reasons.append("run the same command again to retry those that did not fail because of their content")
        raise IncompleteRun("; ".join([f"{self.done} of {self.events} events have results", *reasons]))

    def to_json(self) -> str:
        """Return the report as an indented JSON object with a final newline."""
        fields = dataclasses.asdict(self)
        fields |= {name: getattr(self, name) for name in _COMPUTED}
        return json.dumps(fields, indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Read a report from OUT/report.json; raises InputError when the file is missing or not a report."""
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
    """Return the summary table of a run, for a rich console."""
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
        *([("events per version", _shares(report.versions))] if report.versions else []),
        *([("empty events", str(report.empty))] if report.empty else []),
        *([("passed over", listed(report.passed_over))] if report.passed_over else []),
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
        table.add_row(Text(name), Text(value))  # Text, so that rich does not read [brackets] in a reason as markup
    return table


def _stages(means: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {mean:.1f}" for stage, mean in means.items()) + " ms"


def _shares(members: Mapping[str, int]) -> str:
    return ", ".join(f"{member} {number}" for member, number in members.items())


def _split(before: int, now: int) -> str:
    return f" ({before} before, {now} now)" if before else ""
