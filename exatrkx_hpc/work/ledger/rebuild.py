"""Rebuild a lost ledger from the journal of results: what its digests prove is done, and nothing is removed."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.events.source import EVENT, Reader, event_key
from exatrkx_hpc.work.ledger.file import create, remove
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_events import digest, event_digest, match_events
from exatrkx_hpc.work.news import LedgerRebuilt
from exatrkx_hpc.work.results.journal import NAME, Journal, facts_in, read_journal
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import Part, event_of, part_file

_SAME: Final = ("format", "results", "workload", "mode", "model", "shard")
_ALSO: Final = ("version", "models")


def rebuild(
    results: Results, events: Path, facts: Mapping[str, str], *, locks: bool = True, tell: Tell = untold
) -> bool:
    """Create the ledger of OUT from its journal, if there are results without one; return whether it did.

    A result is done if its digest and that of its event are those of the journal. Other results go to OUT/unproven.
    Does nothing without a journal, or with one of other settings. Raises OutputError when a file cannot be written.
    """
    with results.usable():
        known = facts_in(results.journal)
    if any(known.get(name, "") != facts.get(name, "") for name in _SAME) or not any(results.result_files()):
        return False
    create(results.ledger, {**facts, **{name: known[name] for name in _ALSO if name in known}}, locks=locks)
    try:
        with Ledger(results.ledger, locks=locks) as ledger, results.usable():
            column = facts.get("column", EVENT)
            match_events(ledger, events, column=column, shard=results.shard, workload=results.workload)
            taken = _take_over(ledger, results, events)
            unproven = _set_aside(ledger, results)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(results.ledger)
        raise
    tell(LedgerRebuilt(out=str(results.out), taken=taken, unproven=unproven))
    return True


def _take_over(ledger: Ledger, results: Results, events: Path) -> int:
    """Mark the events done whose results are proven; return their number."""
    ledger.begin_run(server="(rebuilt from the journal)", version=ledger.facts.get("version", ""))
    with contextlib.closing(Reader(results.workload)) as reader:
        for line in read_journal(results.journal):
            if "result" in line:
                result = Result(**line["result"])
                path = results.file_of(result.name)
                if digest(path).hex() == result.result_sha256 and _same_event(ledger, events, result, reader):
                    ledger.done(result)
            elif "part" in line:
                part, whole = Part(**line["part"]), [Result(**fields) for fields in line["results"]]
                path = results.folder / part_file(results.workload, part.event)
                same = digest(path).hex() == part.sha256
                if same and all(_same_event(ledger, events, result, reader) for result in whole):
                    ledger.done_part(part, [(result, 1) for result in whole])
    ledger.end_run(None)
    return ledger.counts().done


def _same_event(ledger: Ledger, events: Path, result: Result, reader: Reader) -> bool:
    event = ledger.place(events, result.name)
    return event is not None and event_digest(event, reader).hex() == result.sha256


def _set_aside(ledger: Ledger, results: Results) -> int:
    """Move the results that nothing proves to OUT/unproven, also those of a shard; return their number."""
    number = 0
    for path in list(results.result_files()):
        event = event_of(results.workload, path.name)
        table, name = ("events", path.name.removesuffix(results.workload.suffix)) if event is None else ("parts", event)
        done = "state = 'done' AND part IS NULL" if table == "events" else "1"
        with ledger.sqlite_errors():
            row = ledger.db.execute(f"SELECT {done} FROM {table} WHERE key = ?", (event_key(name),)).fetchone()
        if (row is None and event is None) or (row is not None and row[0]):
            continue  # proven, or of no event of this folder: those stay as they are
        path.rename(_free_name(results.top / "unproven", path.name))
        number += 1
    return number


def _free_name(folder: Path, name: str) -> Path:
    """Return a path in the folder, which is created if missing, where no file of an earlier rebuild lies."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(path for one in names if not os.path.lexists(path := folder / one))


def begin_journal(ledger: Ledger, results: Results) -> None:
    """Write a journal for a ledger of a version that had none; raises OutputError."""
    if results.journal.exists() or ledger.facts.get("results", "csv") != "csv":
        return
    aside = results.journal.with_name(f".{NAME}.new")  # a journal that a kill cut would miss results
    with results.usable():
        aside.unlink(missing_ok=True)
    journal = Journal(aside)
    journal.note_facts(ledger.facts)
    with ledger.sqlite_errors():
        rows = ledger.db.execute(
            "SELECT name, items, seconds, retries, size, mtime_ns, lower(hex(sha256)), result_size, "
            "lower(hex(result_sha256)), coalesce(member, ''), coalesce(version, '') FROM events "
            "WHERE state = 'done' AND result_sha256 IS NOT NULL"
        )
        while batch := rows.fetchmany(1000):
            for row in batch:
                fields = ("name", "items", "seconds", "retries", "size", "mtime_ns", "sha256", "result_size")
                more = ("result_sha256", "member", "version")
                journal.note_result(Result(**dict(zip((*fields, *more), row, strict=True))))
            journal.flush()
    journal.close()
    with results.usable():
        aside.rename(results.journal)
