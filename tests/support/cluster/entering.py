"""Run programs inside a pretend machine, as one of its users, from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from exatrkx_hpc.base.process import Child


def enter_argv(first: int, argv: Sequence[str], *, uid: int, cwd: str) -> list[str]:
    """Return the command that runs `argv` in the machine whose first process is `first`, as the user `uid`.

    The kernel kills the program when its caller ends, because a signal to nsenter does not reach the program.
    """
    enter = ["nsenter", f"--target={first}", "--net", "--uts", "--mount", "--pid", f"--wdns={cwd}", "--"]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", "--pdeathsig=KILL", "--"]
    return [*enter, *become, *argv]


def only_child(pid: int, *, deadline: float = 10.0) -> int | None:
    """Return the first child of a process as soon as it has one, or None if it ends or the deadline passes."""
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        if children:
            return int(children[0])
        time.sleep(0.002)
    return None


class Entered:
    """A program inside a pretend machine; it can be signalled, and stopped with its whole session."""

    def __init__(self, child: Child, log: Path) -> None:
        """Take over a started nsenter; `log` is the file with the program's output."""
        self._child = child
        self._inner = only_child(child.pid)
        self.log = log

    @property
    def pid(self) -> int:
        """The program's PID on this machine, outside; raises ClusterError if the program never started."""
        if self._inner is None:
            raise ClusterError(f"nothing was started: {self.log.read_text(errors='replace')[-500:]}")
        return self._inner

    def returncode(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._child.returncode()

    def wait(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for its end; return its exit status, or None if it still runs."""
        return self._child.wait(timeout)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program; nothing happens if it has ended."""
        if self._inner is not None and self.returncode() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._inner, number)

    def stop(self, *, grace: float = 10.0, first: signal.Signals = signal.SIGTERM) -> None:
        """Send `first`, wait up to `grace` seconds, then kill the program and its session."""
        self.send(first)
        self.wait(grace)
        self._child.stop(grace=0, first=signal.SIGKILL)
