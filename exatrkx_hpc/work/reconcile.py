"""What a ledger says of its events, held against the folder: what is new, what changed, what is gone."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from exatrkx_hpc.errors import InputError
from exatrkx_hpc.work.events import event_key, no_events, scan_events
from exatrkx_hpc.work.ledger import Ledger
from exatrkx_hpc.work.ledger_file import as_text

T = TypeVar("T")

_BATCH: Final = 1000
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How the folder of events differs from the ledger: events that are new, that changed, that are gone."""

    new: int = 0
    changed: int = 0
    gone: int = 0

    def __str__(self) -> str:
        said = [f"{number} {what}" for what, number in vars(self).items() if number]
        return ", ".join(said)


def match_events(ledger: Ledger, folder: Path, *, accept: bool = False) -> Changes:
    """Take the events of `folder` into the ledger and return what was different.

    New ones are added, and one that changed after it had failed waits again. When one changed after it was done,
    or left the folder, it raises InputError with the first names, and the ledger stays as it was; with `accept` the
    changed ones wait again and those that are gone are forgotten. Also raises InputError for a folder without events.
    """
    with ledger.told():
        try:
            changes = _match_events(ledger, folder, accept=accept)
            ledger.db.commit()
        except BaseException:
            ledger.db.rollback()
            raise
        finally:
            ledger.db.execute("DROP TABLE IF EXISTS temp.listed")
    return changes


def _match_events(ledger: Ledger, folder: Path, *, accept: bool) -> Changes:
    before = ledger.counts().events
    listed = _list(ledger, folder)
    if not listed:
        raise no_events(folder)
    with contextlib.closing(_changed(ledger, folder)) as changed:
        first = [name for _, name in itertools.islice(changed, _NAMED)]
        # To refuse, the first ones are enough: each of them costs a file that is read.
        number = len(first) + (sum(1 for _ in changed) if accept else 0)
    (known,) = ledger.db.execute("SELECT count(*) FROM listed JOIN events USING (key)").fetchone()
    gone = _gone(ledger, folder) if known < before else iter(())
    if not accept:
        _refuse(ledger, folder, first, [name for _, name in itertools.islice(gone, _NAMED)], before - known)
    forgotten = 0
    for batch in batches(gone):
        forgotten += len(batch)
        ledger.db.executemany("DELETE FROM events WHERE key = ?", [(key,) for key, _ in batch])
    ledger.db.execute(
        # In the order of the keys: pages that fill one after the other are written once.
        "INSERT INTO events (key, name, size, mtime_ns) SELECT key, name, size, mtime_ns FROM listed "
        "WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.key = listed.key) ORDER BY key"
    )
    return Changes(new=listed - known, changed=number, gone=forgotten)


def _list(ledger: Ledger, folder: Path) -> int:
    """Put the events of the folder, which may be millions, into a table that SQLite keeps on disk."""
    ledger.db.execute("CREATE TEMP TABLE listed (key BLOB, name TEXT, size INTEGER, mtime_ns INTEGER)")
    number = 0
    for batch in batches(_stamps(folder)):
        ledger.db.executemany("INSERT INTO listed VALUES (?, CAST(? AS TEXT), ?, ?)", batch)
        number += len(batch)
    return number


def _stamps(folder: Path) -> Iterator[tuple[bytes, bytes, int, int]]:
    for entry in scan_events(folder):
        with contextlib.suppress(FileNotFoundError):  # it went in this very moment
            stat, name = entry.stat(), entry.name.removesuffix(".csv")
            yield event_key(name), as_text(name), stat.st_size, stat.st_mtime_ns


def _changed(ledger: Ledger, folder: Path) -> Generator[tuple[bytes, str], None, None]:
    """Yield the done events whose content is another now, and let them wait again."""
    differing = ledger.db.execute(
        "SELECT key, listed.name, listed.size, listed.mtime_ns, state, sha256, events.size FROM listed "
        "JOIN events USING (key) WHERE listed.size != events.size OR listed.mtime_ns != events.mtime_ns"
    )
    for key, name, size, mtime_ns, state, sha256, former_size in differing:
        another = state == "done" and (size != former_size or digest(folder / f"{name}.csv") != sha256)
        again = "waiting" if another or state == "quarantined" else state
        ledger.db.execute(
            "UPDATE events SET size = ?, mtime_ns = ?, state = ? WHERE key = ?", (size, mtime_ns, again, key)
        )
        if another:
            yield key, name


def _gone(ledger: Ledger, folder: Path) -> Iterator[tuple[bytes, str]]:
    for key, name in rows(ledger, "state != ''"):
        if not (folder / f"{name}.csv").is_file():
            yield key, name


def rows(ledger: Ledger, condition: str) -> Iterator[tuple[bytes, str]]:
    """Yield keys and names page by page, so that rows may be changed meanwhile."""
    cursor = b""
    while True:
        query = f"SELECT key, name FROM events WHERE key > ? AND {condition} ORDER BY key LIMIT {_BATCH}"
        rows = ledger.db.execute(query, (cursor,)).fetchall()
        if not rows:
            return
        yield from rows
        cursor = rows[-1][0]


def _refuse(ledger: Ledger, folder: Path, changed: list[str], gone: list[str], number_gone: int) -> None:
    """Raise InputError when events changed or are gone."""
    said = []
    if changed:
        said.append(f"events changed since they were done ({_named(changed, len(changed))})")
    if gone:
        said.append(f"{number_gone} are no longer in {folder} ({_named(gone, number_gone)})")
    if not said:
        return
    former = ledger.facts.get("folder", "")
    if former != os.path.realpath(folder):
        raise InputError(
            f"{ledger.path} is of the events in {former}, and those in {folder} are others: {'; '.join(said)}; "
            "choose another -o, or begin anew with --fresh"
        )
    raise InputError(
        f"{'; '.join(said)}; put them back, or do changed ones again and forget those that are gone with "
        "--accept-changes, or begin anew with --fresh"
    )


def _named(names: list[str], number: int) -> str:
    more = len(names) >= _NAMED and number >= len(names)
    return ", ".join(names) + (", …" if more else "")


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file; nothing when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return b""


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists, so that memory holds a few thousand at a time."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch
