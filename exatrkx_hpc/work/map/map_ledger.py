"""The results of a map on disk: a folder as `run-clients` writes it, with a ledger that grows with the events.

Events of a map have no files, so the ledger identifies each by its name and the SHA-256 of its tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, InputError, ModelError, OutputError
from exatrkx_hpc.base.readable import one_line
from exatrkx_hpc.work.events.source import CSV, event_key
from exatrkx_hpc.work.inference.client import Answer
from exatrkx_hpc.work.inference.retry import Poisoned
from exatrkx_hpc.work.ledger.file import as_text, create
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_events import digest
from exatrkx_hpc.work.ledger.match_results import match_quarantine
from exatrkx_hpc.work.ledger.open import match_files, require_same, require_served
from exatrkx_hpc.work.map.found import Event, Found
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.models import Served
from exatrkx_hpc.work.results.outcome import Failed, Result
from exatrkx_hpc.work.results.read import read_result
from exatrkx_hpc.work.results.shards import read_sharding
from exatrkx_hpc.work.results.write import write_result
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.progress import Tally
from exatrkx_hpc.work.run.worker import KINDS, result_of
from exatrkx_hpc.work.workloads.base import Workload
from exatrkx_hpc.work.workloads.watch import Watch

FORMAT: Final = "python"
"""The event format in the ledger of a map."""

_REMEDY: Final = "choose another ledger="

_ERRORS: Final[dict[str, type[ExatrkxError]]] = {
    "input": InputError,
    "model": ModelError,
    "poison": Poisoned,
    "endpoint": EndpointError,
}

_FIND: Final = """
SELECT state, sha256, result_sha256, seconds, retries, member, version, kind, reason FROM events WHERE key = ?
"""
_NEW: Final = "INSERT INTO events (key, name, size, mtime_ns, sha256) VALUES (?, CAST(? AS TEXT), ?, 0, ?)"
_AGAIN: Final = "UPDATE events SET state = 'waiting', size = ?, sha256 = ? WHERE key = ?"


class _Row(NamedTuple):
    """The ledger entry of one event."""

    state: str
    sha256: bytes
    result_sha256: bytes | None
    seconds: float
    retries: int
    member: str
    version: str
    kind: str
    reason: str


class Scribe:
    """Maintains the output folder of one map; only one thread at a time may call it, from `open` to `close`."""

    def __init__(
        self,
        out: Path,
        *,
        workload: Workload,
        server: str,
        mode: str,
        model: str,
        watch: Watch,
        accept_changes: bool = False,
        retry_failed: bool = False,
    ) -> None:
        """Set what the results must agree with, without opening anything; `watch` checks the units of the events."""
        self._results, self._watch = Results(out, workload=workload), watch
        self._workload, self._server = workload, server
        kind = {"workload": workload.name, "item": workload.item, "results": CSV}
        self._facts = {"folder": "", "format": FORMAT, **kind, "mode": mode, "model": model}
        self._accept, self._retry = accept_changes, retry_failed
        self._stack = contextlib.ExitStack()
        self._ledger: Ledger
        self._opened: Accounts | None = None
        self._begin = self._last_answer = time.monotonic()

    def open(self) -> None:
        """Lock the folder, create it if needed, and check its ledger against its files.

        Raises OutputError when the folder cannot be used, another run uses it, or its ledger does not fit.
        """
        if read_sharding(self._results.out) is not None:
            raise OutputError(f"{self._results.out} was written by run-clients in shards; {_REMEDY}")
        self._results.require_ours()
        locks = self._stack.enter_context(self._results.owned())
        self._results.require_ours()  # again, now that no other map can write
        if not os.path.lexists(self._results.ledger):
            self._results.require_ledger(remedy=_REMEDY)
            self._results.mark()
            self._results.clear()
            create(self._results.ledger, self._facts, locks=locks)
        ledger = self._ledger = self._stack.enter_context(Ledger(self._results.ledger, locks=locks))
        # This refuses a ledger of run-clients: its event format differs.
        require_same(ledger, self._facts, remedy=_REMEDY)
        self._results.mark()
        match_files(ledger, self._results)
        with ledger.sqlite_errors():
            ledger.db.execute("CREATE TEMP TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        version = ledger.facts.get("version", "")
        self._opened = Accounts(ledger, self._results, Path(), server=self._server, version=version)
        self._begin = self._last_answer = time.monotonic()

    @property
    def _accounts(self) -> Accounts:
        assert self._opened is not None, "the scribe is open"
        return self._opened

    def tally(self, *, in_flight: int, events: int) -> Tally:
        """Return the progress of the map; the total is the events of the ledger, or `events` if that is larger."""
        accounts = self._accounts
        return dataclasses.replace(accounts.tally(in_flight=in_flight), events=max(accounts.events, events))

    def known(self, event: Event) -> Found | None:
        """Return the outcome of an event from an earlier map, or None after adding the event to the ledger as waiting.

        Raises InputError for an invalid or repeated name, and, without `accept_changes`, for a done event whose tensors
        have changed.
        """
        key = self._new_key(event.name)
        with self._ledger.sqlite_errors():
            fields = self._ledger.db.execute(_FIND, (key,)).fetchone()
        row = _Row(*fields) if fields is not None else None
        found = self._found(event, row) if row is not None else None
        if found is None:
            self._expect(event, key, row)
        return found

    def _found(self, event: Event, row: _Row) -> Found | None:
        if row.state == "done" and row.sha256 != event.sha256 and not self._accept:
            raise InputError(
                f"{event.name} differs from the event whose result is in {self._results.out}; give it "
                "another name, choose another ledger=, or redo it with accept_changes=True"
            )
        if row.state not in ("done", "quarantined") or row.sha256 != event.sha256:
            return None
        if row.state == "quarantined" and self._retry:
            return None
        if row.state == "quarantined":
            return Found(name=event.name, error=_ERRORS[row.kind](row.reason), before=True)
        path = self._results.file_of(event.name)
        if digest(path) != row.result_sha256:  # another program changed it since the map began
            return None
        answer = Answer(
            outputs=read_result(self._workload, path),
            seconds=row.seconds,
            retries=row.retries,
            member=row.member,
            version=row.version,
        )
        return Found(name=event.name, answer=answer, before=True)

    def _new_key(self, name: str) -> bytes:
        if not name or name[0] == "." or "/" in name or "\0" in name or self._is_long(name):
            raise InputError(
                f"{name!r} is not a valid event name for a ledger: result files are named after events, such as "
                "evt_7.csv"
            )
        key = event_key(name)
        with self._ledger.sqlite_errors():
            if self._ledger.db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 0:
                raise InputError(f"two events are named {name}; a ledger needs unique names")
        return key

    def _is_long(self, name: str) -> bool:
        return len(os.fsencode(name)) > self._workload.longest_name

    def _expect(self, event: Event, key: bytes, row: _Row | None) -> None:
        """Set an event to waiting in the ledger, and remove an earlier outcome from the accounts."""
        accounts = self._accounts
        with self._ledger.sqlite_errors():  # committed together with its result
            if row is None:
                self._ledger.db.execute(_NEW, (key, as_text(event.name), event.size, event.sha256))
                accounts.events += 1
            else:
                self._ledger.db.execute(_AGAIN, (event.size, event.sha256, key))
        if row is not None and row.state == "done":
            accounts.done, accounts.done_before = accounts.done - 1, accounts.done_before - 1
        if row is not None and row.state == "quarantined":
            accounts.failed, accounts.failed_before = accounts.failed - 1, accounts.failed_before - 1
        with self._results.usable():
            self._results.file_of(event.name).unlink(missing_ok=True)

    def begin(self, served: Served) -> None:
        """Note the models of the following answers; raises OutputError if done events are of other models."""
        require_served(self._ledger, served, server=self._server, remedy=_REMEDY)
        self._accounts.version = served.version or self._accounts.version
        self._begin = time.monotonic()

    def note(self, event: Event, found: Found) -> None:
        """Write the outcome of an event: first its result file or quarantine note, then the ledger.

        Raises OutputError on a write error.
        """
        accounts = self._accounts
        if found.answer is not None:
            accounts.add(self._written(event, found.answer), attempts=1)
        elif found.error is not None:
            reason = one_line(str(found.error))
            accounts.fail(Failed(event=event.name, kind=KINDS[type(found.error)], reason=reason), attempts=1)
        accounts.commit()
        self._last_answer = time.monotonic()

    def _written(self, event: Event, answer: Answer) -> Result:
        path = self._results.file_of(event.name)
        written = write_result(
            self._workload, path, answer.outputs, remedy="check permissions and free space there, then map again"
        )
        return result_of(self._workload, event.name, event.content, answer, written)

    def close(self, stopped: str | None) -> None:
        """Write the end of the map and its report, and unlock the folder; raises OutputError on a write error."""
        with self._stack:  # closes ledger and lock, also after an error
            accounts = self._opened
            if accounts is None:
                return
            if self._watch.said:
                self._ledger.set_facts(units=self._watch.said)
            accounts.close(stopped)
            with contextlib.suppress(OSError):
                match_quarantine(self._ledger, self._results.quarantine)
            now = accounts.done - accounts.done_before
            if now or accounts.failed > accounts.failed_before or not self._results.report.exists():
                report = accounts.report(
                    model=self._facts["model"],
                    mode=self._facts["mode"],
                    seconds=self._last_answer - self._begin,
                    workers=(now,),
                    stopped=stopped,
                )
                self._results.write_report(report.to_json())
