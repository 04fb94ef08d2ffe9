"""Orphans: programs that a killed monitor or job left running, and that still hold their ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.process import kill_session, session_members

_PROC = Path("/proc")
#: The job's ID in the command of a Triton server, and of the processes that run its Python models.
_SERVER = re.compile(r"(?:--id=|exatrkx_)([0-9]+)[/_]")


@dataclass(frozen=True, kw_only=True)
class FarmProcess:
    """A process of a farm on this machine: its process ID, its program and its job."""

    pid: int
    program: str
    job: str


def end_orphan(pid_file: Path, *, program: str, mark: str) -> None:
    """End the program that an earlier monitor started, with its process ID in `pid_file`.

    The process and its session are killed only if its name is `program` and its command contains `mark`. If it has
    ended, processes of its session with that name are killed, such as nginx's workers. No other process is touched: the
    process ID may be stale or from another machine.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if (_PROC / str(pid)).exists():
            if _name(pid) == program and mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                kill_session(pid)
            return
        for orphan in session_members(pid):
            if _name(orphan) == program:
                os.kill(orphan, signal.SIGKILL)


def farm_processes(run_root: Path, *, of_monitors: Collection[str]) -> Iterator[FarmProcess]:
    """Yield this user's servers and monitor programs of all jobs of `run_root` on this machine.

    `of_monitors` are the names of the programs that a monitor starts. Processes in containers are skipped: they end
    with their container.
    """
    for entry in sorted(_PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # the process has ended
            if entry.stat().st_uid == os.getuid() and _outside_containers(entry):
                job = _job_of(entry, run_root, of_monitors)
                if job is not None:
                    yield FarmProcess(pid=int(entry.name), program=_name(int(entry.name)), job=job)


def _outside_containers(entry: Path) -> bool:
    return (entry / "ns" / "pid").readlink() == (_PROC / "self" / "ns" / "pid").readlink()


def _job_of(entry: Path, run_root: Path, of_monitors: Collection[str]) -> str | None:
    """Return the job of a process, or None if the process does not belong to a farm of this run root."""
    command = os.fsdecode((entry / "cmdline").read_bytes()).replace("\0", " ")
    if _name(int(entry.name)) in of_monitors:
        found = re.search(rf"{re.escape(str(run_root))}/([0-9]+)/", command)
    elif f"PYTHONPATH={run_root}/python/" in os.fsdecode((entry / "environ").read_bytes()):
        found = _SERVER.search(command)
    else:
        return None
    return found[1] if found else None


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
