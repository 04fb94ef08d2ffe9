"""The file of a ledger: created atomically, locked by one process, checked, with one-line errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError

SCHEMA: Final = 4
"""The version of the tables. Ledgers since version 2 are migrated; ledgers of other versions are refused."""

#: Counts and stage times of done events. Created when a ledger is opened, so that older ledgers also have this table.
_EXTRAS: Final = """
CREATE TABLE IF NOT EXISTS extras (key BLOB PRIMARY KEY, counts TEXT, stages TEXT) WITHOUT ROWID
"""

_APPLICATION: Final = 0x65787472  # "extr", to recognise SQLite files of other programs

_TABLES: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, server TEXT NOT NULL, version TEXT NOT NULL,
    stopped TEXT
);
CREATE TABLE events (
    key BLOB PRIMARY KEY, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 BLOB, file TEXT, first INTEGER,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'done', 'failed', 'quarantined')),
    attempts INTEGER NOT NULL DEFAULT 0, retries INTEGER NOT NULL DEFAULT 0,
    run INTEGER, ended REAL, seconds REAL, items INTEGER, member TEXT, version TEXT,
    result_size INTEGER, result_sha256 BLOB, part BLOB, kind TEXT, reason TEXT
) WITHOUT ROWID;
CREATE TABLE parts (
    key BLOB PRIMARY KEY, name TEXT NOT NULL, events INTEGER NOT NULL, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
    ended REAL NOT NULL
) WITHOUT ROWID;
"""

#: Deliveries of events that are not done which a server had and did not answer. `size` and `mtime_ns` are the event's
#: at that time: a changed event has no strikes.
_STRIKES: Final = """
CREATE TABLE strikes (
    key BLOB NOT NULL, run INTEGER NOT NULL, at REAL NOT NULL, member TEXT NOT NULL, cause TEXT NOT NULL,
    alone INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL
);
"""

#: Migrates the tables from version 2, which knew only hits and labels, to version 3.
_FROM_2: Final = """
ALTER TABLE events RENAME COLUMN hits TO items;
ALTER TABLE events RENAME COLUMN labels_size TO result_size;
ALTER TABLE events RENAME COLUMN labels_sha256 TO result_sha256;
UPDATE facts SET name = 'results' WHERE name = 'labels';
INSERT OR IGNORE INTO facts VALUES ('workload', 'exatrkx'), ('item', 'hits');
"""

#: What migrates the tables of each version to those of the next one.
_STEPS: Final = {2: _FROM_2, 3: _STRIKES}


def create(path: Path, facts: Mapping[str, str], *, locks: bool = True) -> None:
    """Create an empty ledger at `path`, replacing any file there; raises OutputError when it cannot be written."""
    aside = path.with_name(f".{path.name}.new")
    try:
        remove(aside)
        # A temporary file, so that a half-made ledger never exists at `path`.
        with contextlib.closing(_open(aside, mode="rwc", locks=locks)) as db:
            marks = f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={SCHEMA};"
            db.executescript(f"BEGIN; {_TABLES} {_STRIKES} {marks}")
            rows = [(name, as_text(value)) for name, value in facts.items()]
            db.executemany("INSERT INTO facts VALUES (?, CAST(? AS TEXT))", rows)
            db.commit()
        remove(path)
        aside.replace(path)
    except sqlite3.Error as error:
        with contextlib.suppress(OSError):
            remove(aside)
        raise explain(path, error) from error
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; check permissions and free space, or choose another -o"
        ) from error


def remove(path: Path) -> None:
    """Remove a ledger and its SQLite side files, if they exist; raises OSError."""
    for suffix in ("-wal", "-shm", "-journal", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def connect(path: Path, *, locks: bool = True) -> sqlite3.Connection:
    """Open the ledger at `path` exclusively for this process; `locks` is whether its file system supports locks.

    Raises OutputError for a file that is damaged, has an unsupported version, is not a ledger, or is open elsewhere.
    """
    try:
        db = _open(path, mode="rw", locks=locks)
        try:
            # Exclusive mode before WAL: then SQLite needs no shared memory, which network file systems lack.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            _require_ours(path, db)  # before anything is written
            _own(db)
            _take_over(db)
            (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise _damaged(path, fault)
            with db:
                db.execute(_EXTRAS)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise explain(path, error) from error
    return db


def _open(path: Path, *, mode: str, locks: bool) -> sqlite3.Connection:
    # Without locks in the file system, OUT/.lock has no effect either, and SQLite must not request locks.
    uri = f"{path.absolute().as_uri()}?mode={mode}" + ("" if locks else "&vfs=unix-none")
    # In a notebook, the run has its own thread; only one thread at a time uses the ledger.
    db = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=0.0)
    # A file name need not be UTF-8; Python represents such bytes as lone surrogates.
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return db


def _own(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    # A power cut may lose the last commits; their events are then done again. The file stays intact.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("BEGIN EXCLUSIVE")
    db.commit()


def _require_ours(path: Path, db: sqlite3.Connection) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise OutputError(f"{path} is not a run-clients ledger; choose another -o, or start over with --fresh")
    if not 2 <= schema <= SCHEMA:
        raise OutputError(
            f"{path} is a ledger of version {schema}, but this program uses version {SCHEMA}; resume with the "
            "program version that created it, choose another -o, or start over with --fresh"
        )


def _take_over(db: sqlite3.Connection) -> None:
    """Migrate an older ledger to the current tables, in one transaction."""
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if schema < SCHEMA:
        steps = "".join(step for version, step in _STEPS.items() if version >= schema)
        db.executescript(f"BEGIN; {steps} PRAGMA user_version={SCHEMA}; COMMIT;")


def as_text(value: str) -> bytes:
    """Return a text as bytes for `CAST(? AS TEXT)`: a file name need not be UTF-8."""
    return os.fsencode(value)


def explain(path: Path, error: sqlite3.Error) -> OutputError:
    """Return the one-line error for a failure of SQLite with the ledger at `path`."""
    said = str(error)
    if "full" in said:
        return OutputError(f"cannot write {path}: No space left on device; free space there, then run again")
    if said == "database is locked":
        return OutputError(f"{path} is locked by another program; stop that program, or choose another -o")
    if isinstance(error, sqlite3.OperationalError):
        return OutputError(
            f"cannot use {path}: {said}; check permissions, free space and 'ulimit -n', or choose another -o"
        )
    return _damaged(path, said)


def _damaged(path: Path, why: object) -> OutputError:
    return OutputError(
        f"{path} is damaged ({' '.join(str(why).split())}); restore it from a backup, choose another -o, or do "
        "all events again with --fresh"
    )
