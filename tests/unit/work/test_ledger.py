from __future__ import annotations

import contextlib
import os
import sqlite3
import sys

import pytest
from ledgers import result

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.process import run
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.file import SCHEMA, create
from exatrkx_hpc.work.ledger.ledger import Counts, Ledger
from exatrkx_hpc.work.results.outcome import Failed, Strike
from exatrkx_hpc.work.results.parts import Part

FACTS = {"folder": "/events", "mode": "ensemble"}


def fill(ledger: Ledger, names) -> None:
    rows = [(event_key(name), os.fsencode(name)) for name in names]
    with ledger.db:
        statement = "INSERT INTO events (key, name, size, mtime_ns) VALUES (?, CAST(? AS TEXT), 18, 7)"
        ledger.db.executemany(statement, rows)


@pytest.fixture
def path(tmp_path):
    """A ledger of twelve events that wait."""
    create(tmp_path / "ledger.sqlite", FACTS)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        fill(ledger, [f"evt_{number}" for number in range(12)])
    return tmp_path / "ledger.sqlite"


def names(events) -> list[str]:
    return [event.name for event in events]


def test_a_new_ledger_knows_its_facts_and_nothing_else(tmp_path):
    create(tmp_path / "l.sqlite", FACTS)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert dict(ledger.facts) == FACTS and ledger.counts() == Counts() and ledger.failures(9) == ()
        ledger.set_facts(mode="fused", version="2")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert dict(ledger.facts) == {"folder": "/events", "mode": "fused", "version": "2"}
    assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]


def test_a_part_is_noted_with_all_its_events_or_not_at_all(path):
    names = [f"evt_{number}" for number in range(600)]
    part = Part(event="evt_0", events=600, size=9, sha256="ef" * 32)
    with Ledger(path) as ledger:
        fill(ledger, names[12:])
        ledger.begin_run(server="h:1", version="1")
        ledger.done_part(part, [(result(name, result_size=None, result_sha256=""), 1) for name in names])
        with contextlib.closing(sqlite3.connect(path.with_name("copy"))) as copy:
            ledger.db.backup(copy)  # what is committed
            held = copy.execute("SELECT count(*), count(DISTINCT part), count(result_size) FROM events").fetchall()
        assert held == [(600, 1, 0)] and ledger.counts() == Counts(done=600)
        assert ledger.db.execute("SELECT name, events, size FROM parts").fetchall() == [("evt_0", 600, 9)]
        ledger.done_part(Part(event="evt_5", events=1, size=9, sha256="ef" * 32), [(result("evt_5"), 1)])
    with Ledger(path) as ledger:  # that was closed without a commit
        assert ledger.db.execute("SELECT count(*) FROM parts").fetchall() == [(1,)]


def test_waiting_events_come_in_pages_in_natural_order_and_once_in_a_run(path, tmp_path):
    with Ledger(path) as ledger:
        ledger.begin_run(server="h:1", version="1")
        first = ledger.waiting(tmp_path, limit=3)
        assert names(first) == ["evt_0", "evt_1", "evt_2"] and first[2].path == tmp_path / "evt_2.csv"
        assert names(ledger.waiting(tmp_path, limit=8)) == [f"evt_{number}" for number in range(3, 11)]
        assert names(ledger.waiting(tmp_path)) == ["evt_11"] and ledger.waiting(tmp_path) == []
        ledger.begin_run(server="h:1", version="1")
        assert len(ledger.waiting(tmp_path)) == 12


def test_what_became_of_events_is_there_after_the_next_opening(path, tmp_path):
    with Ledger(path) as ledger:
        ledger.begin_run(server="h:1", version="1")
        ledger.done(result("evt_3", member="n1:8001", version="1"), attempts=2)
        ledger.fail(Failed(event="evt_1", kind="input", reason="evt_1.csv:2: nan"))
        ledger.fail(Failed(event="evt_2", kind="endpoint", reason="nothing answers"))
        ledger.end_run("stopped by SIGTERM")
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts(waiting=9, done=1, failed=1, quarantined=1) and ledger.counts().events == 12
        assert [failed.event for failed in ledger.failures(9)] == ["evt_1", "evt_2"]
        assert ledger.failures(1)[0].reason == "evt_1.csv:2: nan"
        columns = "attempts, retries, run, seconds, items, member, version, hex(sha256), result_size"
        (row,) = ledger.db.execute(f"SELECT {columns} FROM events WHERE state = 'done'")
        assert row == (2, 1, 1, 0.25, 3, "n1:8001", "1", "AB" * 32, 6)
        assert list(ledger.db.execute("SELECT server, version, stopped, ended > began FROM runs")) == [
            ("h:1", "1", "stopped by SIGTERM", 1)
        ]


def test_the_next_run_tries_again_what_failed_for_anothers_fault_and_no_more(path, tmp_path):
    with Ledger(path) as ledger:
        ledger.begin_run(server="h:1", version="1")
        for number, kind in enumerate(("input", "model", "worker", "endpoint", "file")):
            ledger.fail(Failed(event=f"evt_{number}", kind=kind, reason=kind))
        ledger.end_run(None)
        assert ledger.counts() == Counts(waiting=7, failed=2, quarantined=3)
        ledger.begin_run(server="h:1", version="1")
        assert names(ledger.waiting(tmp_path)) == [f"evt_{number}" for number in range(3, 12)]
        ledger.done(result("evt_3"))
        ledger.commit()
        assert list(ledger.db.execute("SELECT attempts, kind FROM events WHERE name = 'evt_3'")) == [(2, None)]


def strike(member: str, *, alone: bool = False) -> Strike:
    return Strike(member=member, cause="torn", at=1.5, alone=alone)


def test_strikes_are_on_disk_at_once_and_last_until_their_event_is_done_or_changed(path):
    with Ledger(path) as ledger:
        ledger.begin_run(server="h:1", version="1")
        for event, member in (("evt_1", "a:1"), ("evt_2", "a:1"), ("evt_3", "a:1"), ("evt_1", "")):
            ledger.strike(event, strike(member, alone=not member))
    with Ledger(path) as ledger:  # the other one was closed without a commit
        ledger.begin_run(server="h:1", version="1")
        known = ledger.strikes()
        assert known["evt_1"] == [strike("a:1"), strike("", alone=True)] and list(known) == ["evt_1", "evt_2", "evt_3"]
        ledger.done(result("evt_2"))
        ledger.db.execute("UPDATE events SET size = size + 1 WHERE name = 'evt_3'")
        ledger.fail(Failed(event="evt_1", kind="poison", reason="costs servers"), retries=5)
        ledger.commit()
        assert ledger.counts().quarantined == 1
        ledger.begin_run(server="h:1", version="1")
        assert ledger.strikes() == {} and ledger.db.execute("SELECT count(*) FROM strikes").fetchone() == (2,)
        assert ledger.db.execute("SELECT retries FROM events WHERE name = 'evt_1'").fetchone() == (5,)
        ledger.release()
        assert ledger.db.execute("SELECT count(*) FROM strikes").fetchone() == (0,), "it begins anew"


def test_a_ledger_without_strikes_is_taken_over(path):
    execute(path, "DROP TABLE strikes")
    execute(path, "PRAGMA user_version = 3")
    with Ledger(path) as ledger:
        ledger.begin_run(server="h:1", version="1")
        ledger.strike("evt_1", strike("a:1"))
        assert ledger.strikes() == {"evt_1": [strike("a:1")]} and ledger.counts().events == 12


def test_names_need_not_be_utf8(path, tmp_path):
    odd = os.fsdecode(b"evt_\xff 'x'")
    with Ledger(path) as ledger:
        fill(ledger, [odd])
        ledger.begin_run(server="h:1", version="1")
        assert names(ledger.waiting(tmp_path))[-1] == odd
        ledger.fail(Failed(event=odd, kind="input", reason=f"cannot read {odd}"))
        ledger.commit()
        assert ledger.failures(1) == (Failed(event=odd, kind="input", reason=f"cannot read {odd}"),)


KILLED = """
import os, signal, sys
from pathlib import Path
from exatrkx_hpc.work.ledger.ledger import Ledger
from ledgers import result

ledger = Ledger(Path(sys.argv[1]))
ledger.begin_run(server="h:1", version="1")
ledger.done(result("evt_1"))
ledger.commit()
ledger.done(result("evt_2"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_in_the_middle(path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert run([sys.executable, "-c", KILLED, str(path)], env=environment).returncode == -9


def test_what_was_committed_outlives_a_kill_and_the_rest_waits(path):
    killed_in_the_middle(path)
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts(waiting=11, done=1)
        assert list(ledger.db.execute("SELECT ended FROM runs")) == [(None,)]


@pytest.mark.parametrize("cut", [1, 100, 4096, 5000])
def test_a_torn_last_write_costs_that_write_alone(path, cut):
    killed_in_the_middle(path)
    wal = path.with_name("ledger.sqlite-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - cut)
    with Ledger(path) as ledger:
        assert ledger.counts() in (Counts(waiting=11, done=1), Counts(waiting=12))


def test_a_ledger_that_another_program_has_open_is_refused(path):
    other = sqlite3.connect(path, timeout=0.0)
    with Ledger(path), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM facts")
    assert len(other.execute("SELECT * FROM facts").fetchall()) == 2
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutputError, match=r"ledger\.sqlite is locked by another program; stop that program, or choose"):
        Ledger(path)
    other.close()


def test_a_file_system_without_locks_will_do(path, tmp_path):
    with Ledger(path, locks=False) as ledger:
        ledger.begin_run(server="h:1", version="1")
        ledger.done(result("evt_1"))
        ledger.end_run(None)
    with Ledger(path) as ledger:
        assert ledger.counts().done == 1


def execute(path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(statement)


def overwrite(path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.write_bytes(b"\0" * 8192), "is damaged (file is not a database); restore it"),
        (lambda path: path.write_text("events"), "is damaged (file is not a database); restore it"),
        (lambda path: overwrite(path, 4096, b"x" * 12000), "is damaged ("),
        (lambda path: os.truncate(path, 5000), "is damaged (database disk image is malformed)"),
        (lambda path: os.truncate(path, 0), "is not a run-clients ledger"),
        (lambda path: execute(path, "PRAGMA application_id = 0"), "is not a run-clients ledger"),
        (
            lambda path: execute(path, f"PRAGMA user_version = {SCHEMA + 1}"),
            f"is a ledger of version {SCHEMA + 1}, but this program uses version {SCHEMA}; resume with the program",
        ),
    ],
)
def test_what_is_no_sound_ledger_of_this_version_is_refused_and_stays(path, spoil, complaint):
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(OutputError) as caught:
        Ledger(path)
    assert complaint in str(caught.value) and "--fresh" in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_new_ledger_takes_the_place_of_a_broken_one(path):
    killed_in_the_middle(path)
    path.write_text("events")
    create(path, FACTS)
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot (use|write) .*ledger\.sqlite: "):
        create(tmp_path / "file" / "ledger.sqlite", FACTS)
