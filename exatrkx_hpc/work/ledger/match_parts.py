"""Compare the part files of a ledger with the disk: the events of a damaged part are done again.

To keep one result per event, a part is removed if the ledger does not know it or one of its events is no longer done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_events import batches, digest
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.parts import event_of, part_file

#: Parts that are missing or damaged, and parts with an event that is no longer done.
_BROKEN: Final = """
CREATE TEMP TABLE broken AS
SELECT key, name FROM parts
LEFT JOIN (SELECT part, count(*) AS done FROM events WHERE state = 'done' AND part IS NOT NULL GROUP BY part)
    ON part = key
WHERE done IS NOT events OR key NOT IN (SELECT key FROM found)
"""
_COUNT: Final = "SELECT count(*) FROM events WHERE state = 'done' AND part IN (SELECT key FROM broken)"
_WAIT_AGAIN: Final = """
UPDATE events SET state = CASE state WHEN 'done' THEN 'waiting' ELSE state END, part = NULL
WHERE part IN (SELECT key FROM broken)
"""


def match_parts(ledger: Ledger, results: Results, *, settled: float) -> int:
    """Compare the part files with the ledger, inside a transaction; return the number of done events to do again.

    A part that was written after `settled` (seconds since 1970) is also read, because a power cut may damage it. For
    a shard, only its own parts are checked. Raises OSError.
    """
    db = ledger.db
    try:
        db.execute("CREATE TEMP TABLE found (key BLOB PRIMARY KEY) WITHOUT ROWID")
        for batch in batches(_part_files(results)):
            for key, path in batch:
                row = db.execute("SELECT size, sha256, ended > ? FROM parts WHERE key = ?", (settled, key)).fetchone()
                if row is not None and is_whole(path, *row):
                    db.execute("INSERT INTO found VALUES (?)", (key,))
                else:
                    path.unlink(missing_ok=True)
        db.execute(_BROKEN)
        again = _forget(ledger, results)
    finally:
        db.execute("DROP TABLE IF EXISTS temp.found")
        db.execute("DROP TABLE IF EXISTS temp.broken")
    return again


def _forget(ledger: Ledger, results: Results) -> int:
    """Drop the broken parts, remove their files, and return how many of their events were done."""
    names = [name for (name,) in ledger.db.execute("SELECT name FROM broken")]
    if not names:
        return 0
    for name in names:
        (results.folder / part_file(results.workload, name)).unlink(missing_ok=True)
    (again,) = ledger.db.execute(_COUNT).fetchone()
    ledger.db.execute(_WAIT_AGAIN)
    ledger.db.execute("DELETE FROM parts WHERE key IN (SELECT key FROM broken)")
    return int(again)


def is_whole(path: Path, size: int, sha256: bytes, recent: bool) -> bool:
    """Return whether a file has this size (bytes) and, if it is recent, this digest."""
    return path.lstat().st_size == size and (not recent or digest(path) == sha256)


def sweep_parts(ledger: Ledger, results: Results) -> None:
    """Remove parts that the ledger does not know: a worker may briefly outlive its coordinator."""
    for key, path in _part_files(results):
        with ledger.sqlite_errors():
            known = ledger.db.execute("SELECT 1 FROM parts WHERE key = ?", (key,)).fetchone()
        if known is None:
            path.unlink(missing_ok=True)


def _part_files(results: Results) -> Iterator[tuple[bytes, Path]]:
    """Yield the parts of a shard, each with the key of its first event."""
    with os.scandir(results.folder) as entries:
        for entry in entries:
            event = event_of(results.workload, entry.name)
            if event is not None and results.shard.owns(key := event_key(event)):
                yield key, Path(entry.path)
