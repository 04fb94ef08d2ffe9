"""Merge the ledgers of the shards of a run into one report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.accounts import LISTED
from exatrkx_hpc.work.run.event_figures import StageMeans
from exatrkx_hpc.work.run.latency import Stopwatch
from exatrkx_hpc.work.run.report import Report

_FETCHED: Final = 20_000


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts that no ledger has: events of shards that were not started, events per node, and how the run ended."""

    server: str
    model: str
    mode: str
    item: str
    unknown: int = 0
    nodes: Mapping[str, int]
    stopped: str | None


class Merger:
    """Sums ledgers, one after the other; its memory use does not grow with the number of events."""

    def __init__(self) -> None:
        """Start without ledgers."""
        self._watch = Stopwatch()
        self._members: Counter[str] = Counter()
        self._failed: list[Failed] = []
        self._events = self._done = self._now = self._failures = self._failed_before = 0
        self._items = self._retries = 0
        self._counts: Counter[str] = Counter()
        self._stages = StageMeans()
        self._began: list[float] = []
        self._ended: list[float] = []
        self._version = self._units = ""
        self._empty = 0
        self._versions: Counter[str] = Counter()
        self._passed_over: dict[str, int] = {}

    @property
    def idle(self) -> bool:
        """Whether this run tried no event."""
        return not self._ended

    def add(self, ledger: Ledger, *, before: int) -> None:
        """Add a ledger; its runs up to number `before` are earlier ones. Raises OutputError."""
        counts = ledger.counts()
        self._events += counts.events
        self._done += counts.done
        self._failures += counts.failed + counts.quarantined
        self._version = self._version or ledger.facts.get("version", "")
        self._units = self._units or ledger.facts.get("units", "")
        self._empty += ledger.empty()
        self._versions.update(ledger.versions())
        self._passed_over = self._passed_over or json.loads(ledger.facts.get("passed_over", "{}"))
        self._failed += ledger.failures(LISTED)
        with ledger.sqlite_errors():
            self._add_events(ledger, before)
            (old,) = ledger.db.execute(
                "SELECT count(*) FROM events WHERE state IN ('failed', 'quarantined') AND run <= ?", (before,)
            ).fetchone()
            (began, ended) = ledger.db.execute(
                "SELECT min(runs.began), max(events.ended) FROM events JOIN runs USING (run) WHERE run > ?", (before,)
            ).fetchone()
        self._failed_before += old
        if ended is not None:
            self._began.append(began)
            self._ended.append(ended)

    def _add_events(self, ledger: Ledger, before: int) -> None:
        done = ledger.db.execute(
            "SELECT member, seconds, items, retries, counts, stages FROM events "
            "LEFT JOIN extras ON extras.key = events.key WHERE state = 'done' AND run > ?",
            (before,),
        )
        while rows := done.fetchmany(_FETCHED):
            members, seconds, items, retries, counts, stages = zip(*rows, strict=True)
            self._now += len(rows)
            self._members.update(members)
            self._items += sum(items)
            self._retries += sum(retries)
            for known in filter(None, counts):
                self._counts.update(json.loads(known))
            for known in filter(None, stages):
                self._stages.add(json.loads(known))
            self._watch.add_all(np.array(seconds, dtype=np.float64))

    def report(self, facts: RunFacts) -> Report:
        """Return the report of all added ledgers."""
        failed = tuple(sorted(self._failed, key=lambda one: event_key(one.event))[:LISTED])
        return Report(
            server=facts.server,
            model=facts.model,
            mode=facts.mode,
            version=self._version,
            events=self._events + facts.unknown,
            done=self._done,
            done_before=self._done - self._now,
            failed=failed,
            more_failed=self._failures - len(failed),
            failed_before=self._failed_before,
            item=facts.item,
            items=self._items,
            counts=dict(self._counts),
            stages_ms=self._stages.means_ms(),
            seconds=max(self._ended, default=0.0) - min(self._began, default=0.0),
            latency_ms=self._watch.latency(),
            retries=self._retries,
            workers=(),
            members=_named(self._members),
            nodes=_named(facts.nodes),
            stopped=facts.stopped,
            units=self._units,
            versions=dict(self._versions) if len(self._versions) > 1 else {},
            empty=self._empty,
            passed_over=self._passed_over,
        )


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in sorted(counts.items()) if name and number}


def last_runs(ledgers: Mapping[int, Ledger]) -> dict[int, int]:
    """Return the number of the last run of each ledger, 0 without a run."""
    found = {}
    for shard, ledger in ledgers.items():
        with ledger.sqlite_errors():
            (found[shard],) = ledger.db.execute("SELECT coalesce(max(run), 0) FROM runs").fetchone()
    return found


def count_left(ledgers: Iterable[Ledger]) -> int:
    """Return how many events of the ledgers are left to do."""
    return sum(ledger.counts().left for ledger in ledgers)
