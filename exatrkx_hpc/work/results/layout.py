"""The output folder of a run: result files, ledger, report, quarantine; locked by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.results.journal import NAME as JOURNAL
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.results.owner import NAME as MARK
from exatrkx_hpc.work.results.owner import in_the_way, mark, read_owner
from exatrkx_hpc.work.results.parts import event_of, part_file
from exatrkx_hpc.work.results.shards import WHOLE, Shard, read_sharding, shard_folder
from exatrkx_hpc.work.workloads.base import Workload
from exatrkx_hpc.work.workloads.table import workload as default_workload

#: Errors of a file system without locks (Lustre without the mount option flock); the run then goes on without a lock.
_NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})


#: The first bytes of every SQLite file, and the place and value of ours in its header (`ledger.file`).
_SQLITE: Final = b"SQLite format 3\0"
_APPLICATION: Final = (68, b"extr")


def is_ledger(path: Path) -> bool:
    """Return whether a file begins as a ledger of this program does, even if it is damaged further on."""
    place, ours = _APPLICATION
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return False
    return head.startswith(_SQLITE) and head[place : place + len(ours)] == ours


class Results:
    """The paths in the output folder OUT, its lock, its report and its quarantine."""

    def __init__(self, out: Path, shard: Shard = WHOLE, *, workload: Workload | None = None) -> None:
        """Set the paths; create nothing yet.

        Each shard has its own ledger, report and quarantine below OUT/shards. The result files of all shards are in
        one folder, named by the workload (`OUT/labels` for ExaTrkX, the default workload).
        """
        self.workload = workload or default_workload()
        self.folder = out / self.workload.folder
        self.shard = shard
        self.top = out
        self.out = out = out if shard.is_whole else shard_folder(out, shard.number)
        self.report = out / "report.json"
        self.page = out / "report.html"
        self.times = out / "times.csv"
        self.ledger = out / "ledger.sqlite"
        self.journal = out / JOURNAL
        self.quarantine = out / "quarantine"
        self.fresh = out / "fresh"

    def require_ours(self) -> None:
        """Raise OutputError if files of others are where results would go, unless OUT is marked or has our ledger.

        OUT is also ours with a ledger or shards of a version that did not mark its folders.
        """
        if read_owner(self.top) is not None or is_ledger(self.ledger) or read_sharding(self.top) is not None:
            return
        found = itertools.chain(self._beside(), self.result_files())
        if (first := next(found, None)) is not None:
            raise in_the_way(self.top, itertools.chain((first,), found))

    def _beside(self) -> Iterator[Path]:
        """Yield what is where the other files of a run would go."""
        names = (path.name for path in (self.ledger, self.report, self.page, self.times, self.journal))
        shards = (self.top / "shards",) if self.shard.is_whole else ()
        for path in (*(self.top / name for name in names), *shards):
            if os.path.lexists(path):
                yield path
        yield from sorted((self.top / self.quarantine.name).glob("*.json"))

    def result_files(self) -> Iterator[Path]:
        """Yield what is named like a result of this shard, also if it is no file."""
        with self.usable(), contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                event = event_of(self.workload, entry.name)
                if event is None and entry.name.endswith(self.workload.suffix):
                    event = entry.name.removesuffix(self.workload.suffix)
                if event is not None and self.shard.owns(event_key(event)):
                    yield Path(entry.path)

    def mark(self) -> None:
        """Mark OUT as ours; call it when `require_ours` has passed. Raises OutputError when it cannot be written."""
        with self.usable():
            mark(self.top)

    def require_ledger(self, *, remedy: str = "do all events again with --fresh") -> None:
        """Raise OutputError if results are here without the ledger that proves them; call it without a ledger.

        `remedy` ends the error message.
        """
        number = sum(1 for _ in self.result_files())
        if number and not self.fresh.exists():
            results = f"{number} result" + ("s" if number > 1 else "")
            raise OutputError(
                f"{self.folder} has {results} of an earlier run, but {self.ledger} is missing; restore it, move "
                f"{self.folder} elsewhere to keep the results, or {remedy}"
            )

    @contextlib.contextmanager
    def owned(self, *, to_write: bool = True) -> Iterator[bool]:
        """Create the folders and hold OUT/.lock inside the block; yield whether the file system supports locks.

        `to_write=False` does not create the folder of the result files. Folders that were created here and stay
        empty, because the run is refused, are removed again. The system releases the lock of a process that dies.
        Raises OutputError when another run holds the lock or the folders cannot be created.
        """
        fresh = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
        with self.usable():
            if to_write:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.out.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield self._locked(lock)
        finally:
            self._remove_unused(fresh)
            # A child process that another thread is starting has a copy of `lock`, so closing ours does not unlock it.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _remove_unused(self, fresh: Sequence[Path]) -> None:
        """Remove the folders that were created for this run, OUT first, if nothing was written to them."""
        with contextlib.suppress(OSError):
            if fresh and {entry.name for entry in self.out.iterdir()} <= {".lock", MARK, self.folder.name}:
                self.folder.rmdir()  # fails unless the folder is empty; then everything stays
                (self.out / MARK).unlink(missing_ok=True)
                (self.out / ".lock").unlink()
                for folder in fresh:
                    folder.rmdir()

    def _locked(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another run writes to {self.out}; wait until it ends, or choose another -o") from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise self._unusable(error) from error
        return True

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Turn an OSError inside the block into an OutputError with a remedy."""
        try:
            yield
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(f"cannot use {self.out} for results: {error.strerror} ({error.filename}); choose another -o")

    def write_report(self, text: str) -> None:
        """Write OUT/report.json; raises OutputError when it cannot be written."""
        try:
            write_whole(self.report, text)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.report}: {error.strerror}; check permissions and free space"
            ) from error

    def put_into_quarantine(self, failed: Failed, **more: str) -> None:
        """Write OUT/quarantine/EVENT.json: why an event has no result, and the other known facts.

        Raises OutputError when it cannot be written.
        """
        path = self.quarantine / f"{failed.event}.json"
        known = {**vars(failed), **more, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            self.quarantine.mkdir(exist_ok=True)
            write_whole(path, json.dumps(known, indent=2) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; check permissions and free space") from error

    def file_of(self, event: str) -> Path:
        """Return the path of an event's result file, for results in one file per event."""
        return self.folder / f"{event}{self.workload.suffix}"

    def forget(self, events: Iterable[str]) -> None:
        """Remove files of these events that a dead worker wrote but did not report: only done events have results."""
        for name in events:
            for file in (self.file_of(name), self.folder / part_file(self.workload, name)):
                with contextlib.suppress(OSError):
                    file.unlink()

    def clear(self) -> None:
        """Remove what earlier runs wrote, but for their ledger and the result files, which `match_results` checks."""
        with self.usable():
            self.report.unlink(missing_ok=True)
            self.page.unlink(missing_ok=True)
            self.times.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
            for note in self.quarantine.glob("*.json"):
                note.unlink(missing_ok=True)
