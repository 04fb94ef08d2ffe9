"""What a monitor that was killed leaves behind: programs that still hold its ports."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from exatrkx_hpc.process import kill_session, session_members


def end_leftover(pid_file: Path, *, program: str, mark: str) -> None:
    """End the program that an earlier monitor started and whose process id is in `pid_file`.

    It is ours only if it is called `program` and `mark` is in its command; if it has ended, its own processes
    of that name may have outlived it, as nginx's workers do. Nothing else is ended: the number may be stale, or
    of another machine.
    """
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if (Path("/proc") / str(pid)).exists():
            if _name(pid) == program and mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                kill_session(pid)
            return
        for orphan in session_members(pid):
            if _name(orphan) == program:
                os.kill(orphan, signal.SIGKILL)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
