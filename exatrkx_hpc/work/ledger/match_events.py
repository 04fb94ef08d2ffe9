"""Compare the events of a ledger with the folder: new, changed and missing events."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.source import (
    CSV,
    EVENT,
    PARQUET,
    EventFile,
    PassedOver,
    Reader,
    Stamp,
    event_key,
    no_events,
    place_event,
    scan_events,
    scattered_events,
)
from exatrkx_hpc.work.ledger.file import as_text
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.results.shards import WHOLE, Shard
from exatrkx_hpc.work.workloads.base import Workload

T = TypeVar("T")

_BATCH: Final = 1000
_NAMED: Final = 3
_STAMP: Final = ", ".join(Stamp._fields)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Differences between the folder of events and the ledger: the numbers of new, changed and missing events."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict, compare=False)
    """What lies in the folder and is no event, by kind."""


def match_events(
    ledger: Ledger,
    folder: Path,
    *,
    accept: bool = False,
    column: str = EVENT,
    shard: Shard = WHOLE,
    workload: Workload | None = None,
) -> Changes:
    """Update the ledger to the events of `folder`, in the format of the ledger; return the differences.

    New events are added, and quarantined events whose file changed wait again. If done events changed, or events are
    missing, raises InputError with the first names and leaves the ledger unchanged; with `accept`, changed events
    wait again and missing ones are dropped. Also raises InputError for a folder without events. In Parquet files,
    `column` names the events. For a `shard`, only its own events count, and there may be none.
    """
    with ledger.sqlite_errors():
        try:
            listing = _Listing(folder=folder, column=column, shard=shard, workload=workload)
            changes = _match_events(ledger, listing, accept=accept)
            ledger.db.commit()
        except BaseException:
            ledger.db.rollback()
            raise
        finally:
            ledger.db.execute("DROP TABLE IF EXISTS temp.listed")
    return changes


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """Selects the events: folder, event column, shard and workload."""

    folder: Path
    column: str
    shard: Shard
    workload: Workload | None
    passed: PassedOver = field(default_factory=PassedOver)


def _match_events(ledger: Ledger, listing: _Listing, *, accept: bool) -> Changes:
    before, folder = ledger.counts().events, listing.folder
    form = ledger.facts.get("format", CSV)
    listed = _list(ledger, listing, form)
    if not listed and listing.shard.is_whole:
        raise no_events(folder, listing.workload)
    with contextlib.closing(_changed(ledger, listing, form)) as changed:
        first = [name for _, name in itertools.islice(changed, _NAMED)]
        # The first ones are enough for a refusal: each one costs reading a file.
        number = len(first) + (sum(1 for _ in changed) if accept else 0)
    (known,) = ledger.db.execute("SELECT count(*) FROM listed JOIN events USING (key)").fetchone()
    gone = _gone(ledger, folder, form) if known < before else iter(())
    if not accept:
        _refuse(ledger, folder, first, [name for _, name in itertools.islice(gone, _NAMED)], before - known)
    forgotten = 0
    for batch in batches(gone):
        forgotten += len(batch)
        ledger.db.executemany("DELETE FROM events WHERE key = ?", [(key,) for key, _ in batch])
    ledger.db.execute(
        # In key order: pages that fill one after the other are written once.
        f"INSERT INTO events (key, {_STAMP}) SELECT key, {_STAMP} FROM listed "
        "WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.key = listed.key) ORDER BY key"
    )
    return Changes(new=listed - known, changed=number, gone=forgotten, passed_over=dict(listing.passed.counts))


def _list(ledger: Ledger, listing: _Listing, form: str) -> int:
    """Put the events of the folder, perhaps millions, into a temporary table on disk; return their number."""
    ledger.db.execute(
        "CREATE TEMP TABLE listed (key BLOB, name TEXT, size INTEGER, mtime_ns INTEGER, file TEXT, first INTEGER)"
    )
    number = 0
    found = scan_events(listing.folder, form, column=listing.column, workload=listing.workload, passed=listing.passed)
    rows = map(_row, found)
    for batch in batches(row for row in rows if listing.shard.owns(row[0])):
        ledger.db.executemany("INSERT INTO listed VALUES (?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT), ?)", batch)
        number += len(batch)
    if form == PARQUET:  # names in a folder are unique, but the rows of an event in Parquet may be scattered
        ledger.db.execute("CREATE INDEX temp.listed_keys ON listed (key)")
        query = f"SELECT name FROM listed GROUP BY key HAVING count(*) > 1 LIMIT {_NAMED}"
        names = [name for (name,) in ledger.db.execute(query)]
        if names:
            raise scattered_events(listing.folder, names)
    return number


def _row(stamp: Stamp) -> tuple[bytes, bytes, int, int, bytes | None, int | None]:
    file = as_text(stamp.file) if stamp.file is not None else None
    return event_key(stamp.name), as_text(stamp.name), stamp.size, stamp.mtime_ns, file, stamp.first


def _changed(ledger: Ledger, listing: _Listing, form: str) -> Generator[tuple[bytes, str], None, None]:
    """Update the stamps of differing events; yield done events with changed content, which then wait again."""
    stamp = ", ".join(f"listed.{name.strip()}" for name in _STAMP.split(","))
    differing = ledger.db.execute(
        f"SELECT key, state, sha256, events.size, {stamp} FROM listed JOIN events USING (key) "
        "WHERE listed.size != events.size OR listed.mtime_ns != events.mtime_ns "
        "OR listed.file IS NOT events.file OR listed.first IS NOT events.first"
    )
    with contextlib.closing(Reader(listing.workload)) as reader:
        for key, state, sha256, former_size, *found in differing:
            now = Stamp(*found)
            event = place_event(listing.folder, form, now)
            another = state == "done" and (now.size != former_size or event_digest(event, reader) != sha256)
            again = "waiting" if another or state == "quarantined" else state
            file = as_text(now.file) if now.file is not None else None
            ledger.db.execute(
                "UPDATE events SET size = ?, mtime_ns = ?, file = CAST(? AS TEXT), first = ?, state = ? WHERE key = ?",
                (now.size, now.mtime_ns, file, now.first, again, key),
            )
            if another:
                yield key, now.name


def event_digest(event: EventFile, reader: Reader) -> bytes:
    """Return the SHA-256 of an event as a worker computes it; empty if the event cannot be read."""
    if event.rows is None:
        return digest(event.path)
    try:
        return bytes.fromhex(reader.read(event).sha256)
    except InputError:
        return b""


def _gone(ledger: Ledger, folder: Path, form: str) -> Iterator[tuple[bytes, str]]:
    if form == PARQUET:
        yield from rows(ledger, "NOT EXISTS (SELECT 1 FROM listed WHERE listed.key = events.key)")
        return
    for key, name in rows(ledger, "state != ''"):
        if not os.path.lexists(folder / f"{name}.{form}"):
            yield key, name


def rows(ledger: Ledger, condition: str) -> Iterator[tuple[bytes, str]]:
    """Yield keys and names page by page, so that the rows may change meanwhile."""
    cursor = b""
    while True:
        query = f"SELECT key, name FROM events WHERE key > ? AND {condition} ORDER BY key LIMIT {_BATCH}"
        rows = ledger.db.execute(query, (cursor,)).fetchall()
        if not rows:
            return
        yield from rows
        cursor = rows[-1][0]


def _refuse(ledger: Ledger, folder: Path, changed: list[str], gone: list[str], number_gone: int) -> None:
    """Raise InputError if events changed or are missing."""
    said = []
    if changed:
        said.append(f"events changed since they were done ({_named(changed, len(changed))})")
    if gone:
        said.append(
            f"{number_gone} {'event is' if number_gone == 1 else 'events are'} missing from {folder} "
            f"({_named(gone, number_gone)})"
        )
    if not said:
        return
    former = ledger.facts.get("folder", "")
    if former != os.path.realpath(folder):
        raise InputError(
            f"{ledger.path} was created for the events in {former}; those in {folder} differ: {'; '.join(said)}; "
            "choose another -o, or start over with --fresh"
        )
    raise InputError(
        f"{'; '.join(said)}; restore them, rerun with --accept-changes to redo changed events and drop missing ones, "
        "or start over with --fresh"
    )


def _named(names: list[str], number: int) -> str:
    more = len(names) >= _NAMED and number >= len(names)
    return ", ".join(names) + (", …" if more else "")


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file; empty if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return b""


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of 1000, which bounds the memory."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch
