"""Compare the results of a ledger with the disk: missing or damaged results are done again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.events.source import CSV, PARQUET, event_key
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_events import batches, rows
from exatrkx_hpc.work.ledger.match_parts import is_whole, match_parts, sweep_parts
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.parts import part_suffix

#: In seconds. The kernel writes data to disk within about 30 s, so a power cut does not damage older files.
_SETTLED: Final = 120.0

_RESULT_OF: Final = "SELECT state, result_size, result_sha256, ended > ? FROM events WHERE key = ?"
_WAIT_AGAIN: Final = "UPDATE events SET state = 'waiting' WHERE key = ?"


def match_results(ledger: Ledger, results: Results) -> int:
    """Check the result files against the ledger; return the number of done events to do again.

    These are events whose file is missing or has another size than in the ledger. Files of the last two minutes
    before the last result are also read, because a power cut may damage them. Files of events that are not done,
    temporary files and unknown parts are removed; result files of unknown events stay. Raises OSError. For a shard,
    only its own files are checked: other runs may be writing the others.
    """
    present = 0
    in_parts = ledger.facts.get("results", CSV) == PARQUET
    with ledger.sqlite_errors(), ledger.db:
        settled = _settled(ledger)
        again = match_parts(ledger, results, settled=settled)
        for batch in batches(_result_files(results)):
            torn = []
            for key, entry in batch:
                row = ledger.db.execute(_RESULT_OF, (settled, key)).fetchone()
                if row is None:  # an event of another dataset
                    continue
                state, *written = row
                done = state == "done" and not in_parts
                if done and is_whole(Path(entry.path), *written):
                    present += 1
                    continue
                Path(entry.path).unlink(missing_ok=True)
                torn += [(key,)] if done else []
            ledger.db.executemany(_WAIT_AGAIN, torn)
            again += len(torn)
        if not in_parts and present < ledger.counts().done:
            again += _missing(ledger, results)
    return again


def _settled(ledger: Ledger) -> float:
    """Return the time up to which written files are certainly on disk, in seconds since 1970."""
    (last,) = ledger.db.execute("SELECT coalesce(max(ended), 0) FROM events WHERE state = 'done'").fetchone()
    return float(last) - _SETTLED


def _result_files(results: Results) -> Iterator[tuple[bytes, os.DirEntry[str]]]:
    """Yield the key and the result file of each event of the shard; remove unfinished temporary files."""
    suffix = results.workload.suffix
    # The temporary names that `write_whole` uses for `evt_7.csv` and for the part of `evt_7`.
    part, own = (re.escape(end) for end in (part_suffix(results.workload), suffix))
    aside_of = re.compile(rf"\.(?:part-(?P<first>.*){part}|(?P<event>.*){own})\.[a-z0-9_]{{8}}", re.DOTALL)
    with os.scandir(results.folder) as entries:
        for entry in entries:
            aside = aside_of.fullmatch(entry.name)
            if aside is None and not entry.name.endswith(suffix):
                continue
            key = event_key((aside["first"] or aside["event"]) if aside else entry.name.removesuffix(suffix))
            if not results.shard.owns(key):
                continue
            if aside:
                Path(entry.path).unlink(missing_ok=True)
            else:
                yield key, entry


def _missing(ledger: Ledger, results: Results) -> int:
    missing = 0
    for batch in batches(rows(ledger, "state = 'done'")):
        lost = [(key,) for key, name in batch if not results.file_of(name).is_file()]
        ledger.db.executemany(_WAIT_AGAIN, lost)
        missing += len(lost)
    return missing


def sweep(results: Results, *, ledger: Ledger | None = None) -> None:
    """Remove unfinished result files of the shard and, with a ledger, parts that it does not know."""
    with contextlib.suppress(OSError, OutputError):
        for _ in _result_files(results):
            pass
        if ledger is not None:
            sweep_parts(ledger, results)


def match_quarantine(ledger: Ledger, quarantine: Path) -> None:
    """Remove the notes of events that have a result now, and of unknown events; raises OSError.

    An event that is retried keeps its note until it has a result.
    """
    for note in quarantine.glob("*.json"):
        key = event_key(note.name.removesuffix(".json"))
        with ledger.sqlite_errors():
            row = ledger.db.execute("SELECT state FROM events WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] == "done":
            note.unlink(missing_ok=True)
