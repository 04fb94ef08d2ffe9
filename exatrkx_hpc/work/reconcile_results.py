"""What a ledger says of its results, held against the files: nothing is believed because it was written down."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from exatrkx_hpc.work.events import event_key
from exatrkx_hpc.work.ledger import Ledger
from exatrkx_hpc.work.reconcile import batches, digest, rows

#: A kernel writes data to disk after half a minute or so: what is older than this has survived a power cut.
_SETTLED: Final = 120.0

#: What `write_whole` names the file aside of `evt_7.csv`.
_PART: Final = re.compile(r"\.(.*)\.csv\.[^.]*")

_LABELS_OF: Final = "SELECT state, labels_size, labels_sha256, ended > ? FROM events WHERE key = ?"
_WAIT_AGAIN: Final = "UPDATE events SET state = 'waiting' WHERE key = ?"


def match_labels(ledger: Ledger, labels: Path) -> int:
    """Hold the label files against the ledger; return how many done events must be done again.

    Those are the ones whose label file is missing, or is not of the size that the ledger has. What was written last,
    in two minutes, is read, too, because a power cut may tear such a file. A label file of an event that is not done
    is removed, and so are the parts that killed workers left; what belongs to no event stays. Raises OSError.
    """
    again = present = 0
    with ledger.told(), ledger.db:
        settled = _settled(ledger)
        for batch in batches(_label_files(labels)):
            torn = []
            for entry in batch:
                key = event_key(entry.name.removesuffix(".csv"))
                row = ledger.db.execute(_LABELS_OF, (settled, key)).fetchone()
                if row is None:  # of another dataset
                    continue
                state, *written = row
                if state == "done" and _is_whole(Path(entry.path), *written):
                    present += 1
                    continue
                Path(entry.path).unlink(missing_ok=True)
                torn += [(key,)] if state == "done" else []
            ledger.db.executemany(_WAIT_AGAIN, torn)
            again += len(torn)
        if present < ledger.counts().done:
            again += _missing(ledger, labels)
    return again


def _is_whole(path: Path, size: int, sha256: bytes, recent: bool) -> bool:
    return path.lstat().st_size == size and (not recent or digest(path) == sha256)


def _settled(ledger: Ledger) -> float:
    """Return until when what was written is on the disk for sure, in seconds since 1970."""
    (last,) = ledger.db.execute("SELECT coalesce(max(ended), 0) FROM events WHERE state = 'done'").fetchone()
    return float(last) - _SETTLED


def _label_files(labels: Path) -> Iterator[os.DirEntry[str]]:
    """Yield each label file; parts are removed on the way."""
    with os.scandir(labels) as entries:
        for entry in entries:
            if _PART.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)
            elif entry.name.endswith(".csv"):
                yield entry


def _missing(ledger: Ledger, labels: Path) -> int:
    missing = 0
    for batch in batches(rows(ledger, "state = 'done'")):
        lost = [(key,) for key, name in batch if not (labels / f"{name}.csv").is_file()]
        ledger.db.executemany(_WAIT_AGAIN, lost)
        missing += len(lost)
    return missing


def sweep(labels: Path) -> None:
    """Remove the parts that killed workers left beside the label files."""
    with contextlib.suppress(OSError):
        for _ in _label_files(labels):
            pass


def match_quarantine(ledger: Ledger, quarantine: Path) -> None:
    """Remove the notes of events that are no longer in quarantine. Raises OSError."""
    for note in quarantine.glob("*.json"):
        key = event_key(note.name.removesuffix(".json"))
        with ledger.told():
            row = ledger.db.execute("SELECT state FROM events WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] != "quarantined":
            note.unlink(missing_ok=True)
