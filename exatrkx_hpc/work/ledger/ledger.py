"""The durable record of a run: which events are done, which failed and why. One SQLite file, OUT/ledger.sqlite.

Only one process at a time opens the ledger. A result is on disk before the ledger marks its event as done. So a kill
at any moment may only repeat inferences: it never loses a result and never leaves two for one event.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from exatrkx_hpc.work.events.source import CSV, FORMATS, EventFile, Stamp, event_key, place_event
from exatrkx_hpc.work.ledger.file import as_text, connect, explain
from exatrkx_hpc.work.results.outcome import Failed, Result, Strike
from exatrkx_hpc.work.results.parts import Part

PAGE: Final = 500
"""Events read from the ledger at a time."""

_COMMIT_CHANGES: Final = 500

_DONE: Final = """
UPDATE events SET state = 'done', attempts = attempts + :attempts, retries = retries + :retries, run = :run,
    ended = :ended, seconds = :seconds, items = :items, member = :member, version = :version, size = :size,
    mtime_ns = :mtime_ns, sha256 = :sha256, result_size = :result_size, result_sha256 = :result_sha256, part = :part,
    kind = NULL, reason = NULL
WHERE key = :key
"""
_FAILED: Final = """
UPDATE events SET state = :state, attempts = attempts + :attempts, retries = retries + :retries, run = :run,
    ended = :ended, kind = :kind, reason = CAST(:reason AS TEXT), seconds = NULL, items = NULL, result_size = NULL,
    result_sha256 = NULL, part = NULL
WHERE key = :key
"""
_STRIKE: Final = """
INSERT INTO strikes
SELECT key, :run, :at, CAST(:member AS TEXT), :cause, :alone, size, mtime_ns FROM events WHERE key = :key
"""
#: Strikes of events that are done, dropped or changed.
_VOID: Final = """
DELETE FROM strikes WHERE NOT EXISTS (
    SELECT 1 FROM events WHERE events.key = strikes.key AND state != 'done'
    AND events.size = strikes.size AND events.mtime_ns = strikes.mtime_ns
)
"""
_EXTRA: Final = "INSERT OR REPLACE INTO extras VALUES (:key, :counts, :stages)"
_PART: Final = "INSERT OR REPLACE INTO parts VALUES (:key, CAST(:name AS TEXT), :events, :size, :sha256, :ended)"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The number of events by state; the next run retries `failed` events, but not `quarantined` ones."""

    waiting: int = 0
    done: int = 0
    failed: int = 0
    quarantined: int = 0

    @property
    def events(self) -> int:
        """The number of all events."""
        return self.waiting + self.done + self.failed + self.quarantined

    @property
    def left(self) -> int:
        """The number of events that the next run tries."""
        return self.waiting + self.failed


class Ledger:
    """An open ledger. It collects changes until `commit`, or until there are 500; a done event counts as two."""

    def __init__(self, path: Path, *, locks: bool = True) -> None:
        """Open an existing ledger; `locks` is whether its file system supports locks.

        Raises OutputError for a file that is damaged, has an unsupported version, is not a ledger, or is open
        elsewhere.
        """
        self.path = path
        self.run = 0
        self._pending: list[tuple[str, dict[str, object]]] = []
        self._cursor = b""
        self.db = connect(path, locks=locks)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; changes that were not committed are lost."""
        with self.sqlite_errors():
            self.db.close()

    @contextlib.contextmanager
    def sqlite_errors(self) -> Iterator[None]:
        """Turn an error of SQLite inside the block into an OutputError of one line."""
        try:
            yield
        except sqlite3.Error as error:
            raise explain(self.path, error) from error

    @property
    def facts(self) -> Mapping[str, str]:
        """The facts that describe the ledger, as names and values from `create` or `set_facts`."""
        with self.sqlite_errors():
            return MappingProxyType(dict(self.db.execute("SELECT name, value FROM facts")))

    def set_facts(self, **facts: str) -> None:
        """Set these facts; others stay."""
        with self.sqlite_errors(), self.db:
            rows = [(name, as_text(value)) for name, value in facts.items()]
            self.db.executemany("INSERT OR REPLACE INTO facts VALUES (?, CAST(? AS TEXT))", rows)

    def begin_run(self, *, server: str, version: str) -> None:
        """Begin a run: events that failed because of the infrastructure wait again, and `waiting` starts over."""
        with self.sqlite_errors(), self.db:
            self.db.execute("UPDATE events SET state = 'waiting' WHERE state = 'failed'")
            self.db.execute(_VOID)
            row = (time.time(), server, version)
            self.run = int(
                self.db.execute("INSERT INTO runs (began, server, version) VALUES (?, ?, ?)", row).lastrowid or 0
            )
        self._cursor = b""

    def end_run(self, stopped: str | None) -> None:
        """Commit all changes and note the end of the run; `stopped` is the reason for a stop, if any."""
        self.commit()
        with self.sqlite_errors(), self.db:
            self.db.execute("UPDATE runs SET ended = ?, stopped = ? WHERE run = ?", (time.time(), stopped, self.run))

    def release(self) -> None:
        """Set the events in quarantine to waiting, without their strikes."""
        with self.sqlite_errors(), self.db:
            self.db.execute("DELETE FROM strikes WHERE key IN (SELECT key FROM events WHERE state = 'quarantined')")
            self.db.execute("UPDATE events SET state = 'waiting' WHERE state = 'quarantined'")

    def take_back(self, since: float) -> dict[str, str]:
        """Set events that this run's models answered or refused since then (seconds since 1970) to waiting.

        Return their names, each with its former state.
        """
        self.commit()
        chosen = "WHERE run = ? AND ended >= ? AND (state = 'done' OR state = 'quarantined' AND kind = 'model')"
        with self.sqlite_errors(), self.db:
            former = dict(self.db.execute(f"SELECT name, state FROM events {chosen}", (self.run, since)))
            self.db.execute(f"UPDATE events SET state = 'waiting' {chosen}", (self.run, since))
        return former

    def versions(self) -> dict[str, int]:
        """Return the number of done events of each model version, where the answers had one."""
        query = "SELECT version, count(*) FROM events WHERE state = 'done' AND version != '' GROUP BY version"
        with self.sqlite_errors():
            return dict(self.db.execute(query))

    def waiting(self, folder: Path, limit: int = PAGE) -> list[EventFile]:
        """Return the next waiting events of `folder`, in natural order, each at most once per run."""
        found = self._places(folder, "key > ? AND state = 'waiting' ORDER BY key LIMIT ?", self._cursor, limit)
        if found:
            self._cursor = event_key(found[-1].name)
        return found

    def first(self, folder: Path, limit: int) -> list[EventFile]:
        """Return the first events of `folder` in natural order, in any state."""
        return self._places(folder, "1 ORDER BY key LIMIT ?", limit)

    def place(self, folder: Path, name: str) -> EventFile | None:
        """Return the location of an event of `folder`; None if the ledger does not know it or events are not files."""
        if self.facts.get("format", CSV) not in FORMATS:
            return None
        return next(iter(self._places(folder, "key = ?", event_key(name))), None)

    def _places(self, folder: Path, condition: str, *values: object) -> list[EventFile]:
        form = self.facts.get("format", CSV)
        query = f"SELECT name, size, mtime_ns, file, first FROM events WHERE {condition}"
        with self.sqlite_errors():
            return [place_event(folder, form, Stamp(*row)) for row in self.db.execute(query, values)]

    def done(self, result: Result, *, attempts: int = 1) -> None:
        """Note that the result of an event is on disk; `attempts` workers had the event since the last note."""
        self._pending.append((_EXTRA, _extra(result)))
        self._note(_DONE, self._done(result, attempts))

    def done_part(self, part: Part, results: Iterable[tuple[Result, int]]) -> None:
        """Note, in one transaction, that a part with these results is on disk; each result comes with its attempts."""
        key, sha256 = event_key(part.event), bytes.fromhex(part.sha256)
        fields = {"key": key, "name": as_text(part.event), "events": part.events, "size": part.size, "sha256": sha256}
        notes = []
        for result, attempts in results:
            notes += [(_DONE, self._done(result, attempts) | {"part": key}), (_EXTRA, _extra(result))]
        # All at once, so that one commit has all of them.
        self._pending += [(_PART, {**fields, "ended": time.time()}), *notes]
        self._commit_many()

    def _done(self, result: Result, attempts: int) -> dict[str, object]:
        fields = {**vars(result), "key": event_key(result.name), "attempts": attempts, "run": self.run}
        for name in ("sha256", "result_sha256"):
            fields[name] = bytes.fromhex(str(fields[name])) or None
        for name in ("name", "counts", "stages"):
            del fields[name]
        return {**fields, "ended": time.time(), "part": None}

    def strike(self, event: str, strike: Strike) -> None:
        """Write a strike of an event to disk at once, before the event is delivered again."""
        self.commit()
        fields = {**vars(strike), "member": as_text(strike.member), "key": event_key(event), "run": self.run}
        with self.sqlite_errors(), self.db:
            self.db.execute(_STRIKE, fields)

    def strikes(self) -> dict[str, list[Strike]]:
        """Return the strikes of each event that is neither done nor in quarantine, in their order."""
        query = (
            "SELECT name, strikes.member, cause, at, alone FROM strikes JOIN events USING (key) "
            "WHERE state IN ('waiting', 'failed') ORDER BY strikes.rowid"
        )
        found: dict[str, list[Strike]] = {}
        with self.sqlite_errors():
            for name, member, cause, at, alone in self.db.execute(query):
                strike = Strike(member=member, cause=cause, at=at, alone=bool(alone))
                found.setdefault(name, []).append(strike)
        return found

    def fail(self, failed: Failed, *, attempts: int = 1, retries: int = 0) -> None:
        """Note that an event has no result; an event that would fail again goes into quarantine."""
        fields: dict[str, object] = {
            "key": event_key(failed.event),
            "kind": failed.kind,
            "reason": as_text(failed.reason),
            "run": self.run,
        }
        state = "quarantined" if failed.for_itself else "failed"
        fields |= {"state": state, "attempts": attempts, "retries": retries, "ended": time.time()}
        self._note(_FAILED, fields)

    def _note(self, statement: str, fields: dict[str, object]) -> None:
        self._pending.append((statement, fields))
        self._commit_many()

    def _commit_many(self) -> None:
        if len(self._pending) >= _COMMIT_CHANGES:
            self.commit()

    def commit(self) -> None:
        """Write all collected changes; raises OutputError when the disk is full or the ledger is damaged."""
        if not self._pending:
            return
        with self.sqlite_errors(), self.db:
            for statement, group in _grouped(self._pending):
                self.db.executemany(statement, group)
        self._pending.clear()

    def counts(self) -> Counts:
        """Return the number of events in each state."""
        with self.sqlite_errors():
            return Counts(**dict(self.db.execute("SELECT state, count(*) FROM events GROUP BY state")))

    def empty(self) -> int:
        """Return the number of done events without items, such as hits."""
        with self.sqlite_errors():
            return int(self.db.execute("SELECT count(*) FROM events WHERE state = 'done' AND items = 0").fetchone()[0])

    def failures(self, limit: int) -> tuple[Failed, ...]:
        """Return the first `limit` failed or quarantined events, in natural order."""
        query = "SELECT name, kind, reason FROM events WHERE state IN ('failed', 'quarantined') ORDER BY key LIMIT ?"
        with self.sqlite_errors():
            return tuple(
                Failed(event=name, kind=kind, reason=why) for name, kind, why in self.db.execute(query, (limit,))
            )


def _extra(result: Result) -> dict[str, object]:
    counts, stages = (json.dumps(known) if known else None for known in (result.counts, result.stages))
    return {"key": event_key(result.name), "counts": counts, "stages": stages}


def _grouped(
    pending: Iterable[tuple[str, dict[str, object]]],
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    groups: dict[str, list[dict[str, object]]] = {}
    for statement, fields in pending:  # an event is noted once per run, so the order of the statements does not matter
        groups.setdefault(statement, []).append(fields)
    yield from groups.items()
