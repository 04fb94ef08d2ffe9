"""Read the history of a run from its ledger, or from the ledgers of its shards.

This takes two passes over the events; the memory use does not grow with their number. A run notes what its ledger does
not contain (settings, versions, Triton's counters) as facts of the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.page.history import History, Run, Spread
from exatrkx_hpc.page.launches import joined, noted_launches
from exatrkx_hpc.page.timeline import Timeline, bins
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.event_figures import counts_of
from exatrkx_hpc.work.run.latency import Stopwatch

FAILURES: Final = 20
"""Number of failures listed with name and reason."""

_FETCHED: Final = 20_000
_EVENTS_OF_A_BIN: Final = 10


def note(ledger: Ledger, **facts: Mapping[str, str | float]) -> None:
    """Note facts of a run in its ledger, such as `settings`, `versions`, `compute` (ms by stage) and `answered`.

    A text replaces the earlier value. A float is added to it, because each run notes only its own share.
    """
    for name, values in facts.items():
        known = noted(ledger, name)
        for key, value in values.items():
            former = known.get(key, 0.0)
            known[key] = value + former if isinstance(value, float) and isinstance(former, float) else value
        ledger.set_facts(**{name: json.dumps(known)})


def noted(ledger: Ledger, name: str) -> dict[str, str | float]:
    """Return the values noted under a name; empty without any."""
    try:
        value = json.loads(ledger.facts.get(name, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def history(ledgers: Sequence[Ledger]) -> History:
    """Return the history of one dataset from its ledgers; model, mode, settings and versions are from the first one.

    Raises OutputError for a damaged ledger.
    """
    sums = [_Sums(ledger) for ledger in ledgers]
    runs = _runs(ledgers, sums)
    states, facts = _together(one.states for one in sums), ledgers[0].facts
    timeline = Timeline(runs, bins(states["done"] / _EVENTS_OF_A_BIN))
    for ledger in ledgers:
        for (ended,) in _columns(ledger, "ended", "WHERE state = 'done'"):
            timeline.add(_floats(ended))
    model = {"model": facts["version"]} if facts.get("version") else {}
    return History(
        item=facts.get("item", ""),
        model=facts.get("model", ""),
        mode=facts.get("mode", ""),
        events=sum(states.values()),
        done=states["done"],
        failed=states["failed"],
        quarantined=states["quarantined"],
        items=sum(one.items for one in sums),
        counts=_together(counts_of(ledger) for ledger in ledgers),
        retries=sum(one.retries for one in sums),
        runs=runs,
        throughput=timeline.throughput(),
        latency=_spread([one.watch for one in sums], states["done"]),
        members=_members(_together(one.members for one in sums), _added(ledgers, "answered")),
        compute={name: spent for name, spent in _added(ledgers, "compute").items() if spent},
        kinds=dict(_together(one.kinds for one in sums).most_common()),
        failures=_failures(ledgers),
        settings={name: str(value) for name, value in noted(ledgers[0], "settings").items()},
        units=next(filter(None, (ledger.facts.get("units", "") for ledger in ledgers)), ""),
        versions=model | {name: str(value) for name, value in noted(ledgers[0], "versions").items()},
    )


def _failures(ledgers: Sequence[Ledger]) -> tuple[Failed, ...]:
    """Return the first failures of all ledgers, in the natural order of their names."""
    failures = (failed for ledger in ledgers for failed in ledger.failures(FAILURES))
    return tuple(sorted(failures, key=lambda failed: event_key(failed.event)))[:FAILURES]


def _runs(ledgers: Sequence[Ledger], sums: Sequence[_Sums]) -> tuple[Run, ...]:
    """Return the runs, sorted by begin; the runs of all shards of one start are joined."""
    runs = tuple(sorted((run for one in sums for run in one.runs()), key=lambda run: run.began))
    if "shard" not in ledgers[0].facts:
        return runs
    known = (noted_launches(noted(ledger, "launches"), noted(ledger, "stops")) for ledger in ledgers)
    return joined(runs, [launch for launches in known for launch in launches])


class _Sums:
    """The sums of one pass over the events of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.watch = Stopwatch()
        self.items = self.retries = 0
        self._last: dict[int, float] = {}
        groups: Counter[tuple[str, str, str]] = Counter()
        columns = "state, member, kind, run, ended, seconds, items, retries"
        for state, member, kind, run, ended, seconds, items, retries in _columns(ledger, columns):
            groups.update(zip(state, member, kind, strict=True))
            self.items += sum(filter(None, items))
            self.retries += sum(retries)
            self.watch.add_all(_floats(seconds)[np.array(state) == "done"])
            self._note_last(_floats(run), _floats(ended))
        self.states, self.members, self.kinds = Counter[str](), Counter[str](), Counter[str]()
        for (which, server, why), count in groups.items():
            self.states[which] += count
            if which == "done":
                self.members[server or ""] += count
            elif which in {"failed", "quarantined"}:
                self.kinds[why or ""] += count

    def _note_last(self, run: NDArray[np.float64], ended: NDArray[np.float64]) -> None:
        tried = ~np.isnan(run) & ~np.isnan(ended)
        for number in np.unique(run[tried]):
            last = float(ended[tried & (run == number)].max())
            self._last[int(number)] = max(last, self._last.get(int(number), last))

    def runs(self) -> Iterator[Run]:
        """Yield the runs; the end of a killed run is the time of its last event."""
        with self._ledger.sqlite_errors():
            rows = self._ledger.db.execute("SELECT run, began, ended, server, stopped FROM runs").fetchall()
        for run, began, ended, server, stopped in rows:
            end = self._last.get(run, began) if ended is None else ended
            killed = ended is None
            yield Run(began=began, ended=max(began, end), server=server, stopped=stopped or "", killed=killed)


def _columns(ledger: Ledger, columns: str, where: str = "") -> Iterator[tuple[tuple[Any, ...], ...]]:
    """Yield the columns of up to 20,000 events at a time."""
    with ledger.sqlite_errors():
        cursor = ledger.db.execute(f"SELECT {columns} FROM events {where}")
        while rows := cursor.fetchmany(_FETCHED):
            yield tuple(zip(*rows, strict=True))


def _floats(column: tuple[float | None, ...]) -> NDArray[np.float64]:
    """Return a column as numbers, NaN for None."""
    return np.array(column, dtype=np.float64)


def _together(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter[str]())


def _spread(watches: Sequence[Stopwatch], done: int) -> Spread:
    watch = watches[0]
    for other in watches[1:]:
        watch.join(other)
    edges, counts = watch.histogram(bins(1.5 * done**0.5))
    return Spread(counts=counts, edges_ms=edges, figures=watch.latency())


def _members(said: Counter[str], counted: Mapping[str, float]) -> dict[str, int]:
    """Return done events by member: from the answers, or if these name no member, from the servers' counters."""
    if set(said) <= {""}:
        said = Counter({name: round(value) for name, value in counted.items()})
    return {name or "not known": count for name, count in said.most_common() if count}


def _added(ledgers: Iterable[Ledger], name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for ledger in ledgers:
        for key, value in noted(ledger, name).items():
            if isinstance(value, int | float):
                found[key] = found.get(key, 0.0) + value
    return found
