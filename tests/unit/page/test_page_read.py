from __future__ import annotations

import os

import numpy as np
import pytest

from exatrkx_hpc.page.history import Throughput
from exatrkx_hpc.page.read import history, note, noted
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.file import create
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.results.outcome import Failed, Result

FACTS = {"folder": "/events", "mode": "ensemble", "model": "exatrkx"}
BEGAN = 1_700_000_000.0


@pytest.fixture
def make(tmp_path):
    """Make a ledger of so many events, `evt_0` and on, that wait."""
    opened = []

    def _make(events: int, name: str = "ledger.sqlite") -> Ledger:
        create(tmp_path / name, FACTS)
        ledger = Ledger(tmp_path / name)
        opened.append(ledger)
        rows = [(event_key(f"evt_{place}"), os.fsencode(f"evt_{place}")) for place in range(events)]
        with ledger.db:
            statement = "INSERT INTO events (key, name, size, mtime_ns) VALUES (?, CAST(? AS TEXT), 18, 7)"
            ledger.db.executemany(statement, rows)
        return ledger

    yield _make
    for ledger in opened:
        ledger.close()


def done(ledger: Ledger, name: str, at: float, **changes) -> None:
    fields = {"items": 3, "seconds": 0.25, "retries": 0, "size": 18, "mtime_ns": 7, "sha256": "ab" * 32}
    ledger.done(Result(name=name, result_size=6, result_sha256="cd" * 32, **(fields | changes)))
    ledger.commit()
    when(ledger, name, at)


def when(ledger: Ledger, name: str, at: float) -> None:
    with ledger.db:
        ledger.db.execute("UPDATE events SET ended = ? WHERE key = ?", (BEGAN + at, event_key(name)))


def run_of(ledger: Ledger, began: float, ended: float | None, *, stopped: str | None = None, server="h:1") -> None:
    """Let a run begin, and say when it was; it is not ended when it was killed."""
    ledger.begin_run(server=server, version="1")
    ledger.end_run(stopped)
    row = (BEGAN + began, None if ended is None else BEGAN + ended, ledger.run)
    with ledger.db:
        ledger.db.execute("UPDATE runs SET began = ?, ended = ? WHERE run = ?", row)


def test_a_run_is_told_from_its_ledger(make):
    ledger = make(10)
    run_of(ledger, 0, 4)
    for place in range(6):
        done(ledger, f"evt_{place}", 0.5 + place * 0.5, member="a" if place < 4 else "b", retries=place == 0)
    ledger.fail(Failed(event="evt_6", kind="input", reason="evt_6.csv:1: no"))
    ledger.fail(Failed(event="evt_7", kind="endpoint", reason="silence"))
    ledger.fail(Failed(event="evt_8", kind="endpoint", reason="silence"))
    ledger.commit()
    note(ledger, settings={"workers": "8"}, versions={"Triton": "2.51"}, compute={"gnn": 30.0, "embed": 10})
    told = history([ledger])
    assert (told.model, told.mode, told.events, told.done, told.items, told.retries) == (
        "exatrkx",
        "ensemble",
        10,
        6,
        18,
        1,
    )
    assert (told.failed, told.quarantined, told.left) == (2, 1, 1)
    assert told.members == {"a": 4, "b": 2} and told.kinds == {"endpoint": 2, "input": 1}
    assert [failed.event for failed in told.failures] == ["evt_6", "evt_7", "evt_8"]
    assert told.settings == {"workers": "8"} and told.versions == {"Triton": "2.51"}
    assert told.compute == {"gnn": 30, "embed": 10}
    assert told.throughput.seconds == pytest.approx(4) and told.events_per_second == pytest.approx(1.5)
    assert sum(told.throughput.counts) == 6 == sum(told.latency.counts)
    assert told.latency.figures.p50 == pytest.approx(250, rel=0.01)


def test_time_between_two_runs_is_left_out_and_their_events_are_where_they_belong(make):
    ledger = make(20)
    run_of(ledger, 0, None)  # killed; its last event says how long it was
    for place in range(10):
        done(ledger, f"evt_{place}", 10.0 * place / 9)
    run_of(ledger, 5000, 5010, stopped="stopped by SIGTERM")
    for place in range(10, 20):
        done(ledger, f"evt_{place}", 5009.99)
    told = history([ledger])
    assert told.throughput.seconds == pytest.approx(20, abs=0.01) and told.throughput.begins == pytest.approx([10])
    edges, counts = np.array(told.throughput.edges), np.array(told.throughput.counts)
    assert counts.sum() == 20 and counts[-1] == 10 and counts[edges[:-1] < 10.2].sum() == 10
    first, second = told.runs
    assert first.killed and not first.stopped and second.stopped == "stopped by SIGTERM" and not second.killed


def test_shards_that_ran_at_once_share_their_time(make):
    ledgers = [make(4, f"{place}.sqlite") for place in range(2)]
    for place, ledger in enumerate(ledgers):
        run_of(ledger, 0.5 * place, 8 + place, server=f"h{place}:1")
        for event in range(4):
            done(ledger, f"evt_{event}", 2.0 + event, member="a")
        note(ledger, compute={"gnn": 5})
    told = history(ledgers)
    assert told.throughput.seconds == pytest.approx(9) and told.throughput.begins == ()
    assert told.events == told.done == 8 and told.members == {"a": 8} and told.compute == {"gnn": 10}
    assert len(told.runs) == 2


def test_the_failures_of_shards_are_in_the_order_of_their_names(make):
    ledgers = [make(12, f"{place}.sqlite") for place in range(2)]
    for ledger, events in zip(ledgers, ((2, 11), (0, 10)), strict=True):
        run_of(ledger, 0, 8)
        for event in events:
            ledger.fail(Failed(event=f"evt_{event}", kind="input", reason="no"))
        ledger.commit()
    assert [failed.event for failed in history(ledgers).failures] == ["evt_0", "evt_2", "evt_10", "evt_11"]


def test_members_come_from_the_servers_counters_when_no_answer_said_them(make):
    ledger = make(3)
    run_of(ledger, 0, 1)
    for place in range(3):
        done(ledger, f"evt_{place}", 0.5)
    assert history([ledger]).members == {}
    note(ledger, answered={"n1:8002": 2, "n2:8002": 1})
    assert history([ledger]).members == {"n1:8002": 2, "n2:8002": 1}
    done(ledger, "evt_0", 0.6, member="n1:8001")
    assert history([ledger]).members == {"not known": 2, "n1:8001": 1}


def test_a_ledger_in_which_nothing_happened(make):
    told = history([make(0)])
    assert told.events == told.done == told.left == 0 and told.runs == () and told.events_per_second == 0
    assert told.throughput == Throughput() and told.latency.counts == () and told.members == {}


def test_a_long_run_has_few_bins_of_a_round_width_and_no_sliver_at_its_end(make):
    ledger = make(2)
    run_of(ledger, 0, 36_000.2)
    done(ledger, "evt_0", 36_000.1)
    through = history([ledger]).throughput
    widths = np.diff(through.edges)
    assert (
        len(widths) <= 90 and widths[0] in {500.0, 1000.0, 2000.0, 5000.0} and widths[:-1] == pytest.approx(widths[0])
    )
    assert widths[-1] >= 0.5 * widths[0] and through.edges[-1] == pytest.approx(36_000.2)
    assert through.rates[-1] == pytest.approx(1 / widths[-1])


def test_what_was_noted_and_is_damaged_is_not_known(make):
    ledger = make(1)
    assert noted(ledger, "settings") == {}
    for damaged in ("[1]", "{", '"x"'):
        ledger.set_facts(settings=damaged)
        assert noted(ledger, "settings") == {}


def test_many_events_have_finer_bins_than_few(make):
    few, many = make(20, "few.sqlite"), make(2000, "many.sqlite")
    for ledger, number in ((few, 20), (many, 2000)):
        run_of(ledger, 0, 100)
        with ledger.db:
            statement = """
                UPDATE events SET state = 'done', ended = ? + 100 * (CAST(substr(name, 5) AS REAL) + 0.5) / ?,
                    seconds = 0.1 + CAST(substr(name, 5) AS REAL) / ?
            """
            ledger.db.execute(statement, (BEGAN, number, number))
    told_few, told_many = history([few]), history([many])
    assert (len(told_few.throughput.counts), len(told_many.throughput.counts)) == (10, 50)
    assert set(told_few.throughput.rates) == {0.2} and set(told_many.throughput.rates) == {20.0}
    assert len(told_few.latency.counts) <= 10 < 60 < len(told_many.latency.counts) <= 90
