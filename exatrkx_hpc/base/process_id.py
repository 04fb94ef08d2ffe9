"""A process that no other process is taken for: host, boot, process ID and start time; and whether it still runs."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process of any machine: a process ID is used again, but not with the same start time in the same boot.

    `started` is in the kernel's ticks since boot.
    """

    host: str
    boot: str
    pid: int
    started: int

    @property
    def here(self) -> bool:
        """Whether the process is, or was, one of this machine since its last boot."""
        return (self.host, self.boot) == (host_name(), boot_id())

    @property
    def runs(self) -> bool:
        """Whether the process runs on this machine; False for a process of another machine, and for a zombie."""
        return self.here and _start_time(self.pid) == self.started


def process_id(pid: int) -> ProcessId | None:
    """Return the process of this machine with the process ID `pid`; None if there is none."""
    started = _start_time(pid)
    return None if started is None else ProcessId(host=host_name(), boot=boot_id(), pid=pid, started=started)


def host_name() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


@cache
def boot_id() -> str:
    """Return the ID of this machine's boot; empty where the kernel does not tell."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """Return the start time of a process, in ticks since boot; None if it has ended, also if nobody waited for it."""
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
