"""One worker process as the coordinator sees it: start it, send it events, receive its answers, stop it."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import signal
import sys
import time
from typing import Final

from exatrkx_hpc.base.errors import ConfigError, MissingComponent
from exatrkx_hpc.base.process import spawn_piped
from exatrkx_hpc.work.events.source import EventFile
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import Part
from exatrkx_hpc.work.run.worker import Task

GRACE: Final = 5.0
"""Seconds for a worker to end by itself, and again to end after it was killed."""

_TOO_MANY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})


def worker_environment() -> dict[str, str]:
    """Return this process's environment, plus defaults for large messages and many processes where unset."""
    tuned = {
        # By default glibc returns large blocks to the kernel after each message. A 1 MB send is 2.6 times faster
        # if glibc keeps them.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GRPC_VERBOSITY": "NONE",
        "PYTHONSAFEPATH": "1",  # do not import a numpy.py from the current folder (Python 3.11 and later)
    }
    return {**tuned, **os.environ}


class WorkerProcess:
    """A worker process, which can be restarted, and its unfinished events."""

    def __init__(self, *, grace: float = GRACE) -> None:
        """Prepare without starting a process; `grace` is the time for a process to end, in seconds."""
        self._grace = grace
        self._killed = self._lost = False
        self.outstanding: dict[str, EventFile] = {}
        # Answered events that are in no part yet, in the order in which parts take them.
        self.told: dict[str, tuple[EventFile, Result]] = {}
        self._asked = False
        self.done = 0
        self.heard = 0.0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a worker that is not known to have ended."""
        return self._process is not None and self._process.returncode is None and not self._lost

    async def start(self, task: Task) -> None:
        """Start a worker, in place of one that ended, and send it its task.

        Raises ConfigError when this machine cannot start another process, MissingComponent when Python cannot be
        started at all.
        """
        argv = [sys.executable, "-m", "exatrkx_hpc.work.run.worker"]
        self.discard()
        try:
            self._process = await spawn_piped(argv, env=worker_environment())
        except OSError as error:
            if error.errno in _TOO_MANY:
                raise ConfigError(f"cannot start a worker ({error.strerror}); lower -n") from error
            raise MissingComponent(f"cannot start a worker: {error}; check this Python's installation") from error
        self._killed = self._lost = self._asked = False
        self._send(dataclasses.asdict(task))

    def give(self, event: EventFile) -> None:
        """Send an event to the worker and add it to `outstanding`."""
        if not self.outstanding:
            self.heard = time.monotonic()  # the worker owes an answer from now on
        self.outstanding[event.name] = event
        rows = {} if event.rows is None else {"rows": dataclasses.asdict(event.rows)}
        self._send({"name": event.name, "path": str(event.path), **rows})

    def tell(self, result: Result) -> None:
        """Note that the worker has the result of an event, which is in no part yet."""
        self.told[result.name] = (self.outstanding.pop(result.name), result)

    def take_part(self, part: Part) -> list[Result]:
        """Return the results that the part contains: the oldest answered ones."""
        self._asked = False
        names = list(itertools.islice(self.told, part.events))
        return [self.told.pop(name)[1] for name in names]

    def ask_for_part(self) -> None:
        """Ask a worker without outstanding events to write its collected results."""
        if self.told and not self.outstanding and not self._asked:
            self._asked = True
            self._send({"write": True})

    def take_back(self) -> list[EventFile]:
        """Return the answered events that are in no part; they must be redone."""
        events = [event for event, _ in self.told.values()]
        self.told.clear()
        return events

    def _send(self, fields: dict[str, object]) -> None:
        # A worker that just died reads no line. Its events are taken back when its stdout ends.
        pipe = self._process.stdin if self._process is not None else None
        if pipe is not None and not pipe.is_closing():
            pipe.write((json.dumps(fields) + "\n").encode())

    async def answer(self, longest: float) -> bytes:
        """Return the worker's next complete line; empty when the worker has ended.

        A worker that has events but is silent for `longest` seconds is killed. A killed worker counts as ended after
        the grace, even if another process keeps its stdout open.
        """
        if self._process is None or self._process.stdout is None:
            return b""
        while True:
            patience = min(longest, self._grace) if self._killed else longest
            try:
                line = await asyncio.wait_for(self._process.stdout.readline(), timeout=patience)
            except asyncio.TimeoutError:
                if self._killed:
                    return b""
                if (self.outstanding or self.told) and time.monotonic() - self.heard >= longest:
                    self.kill()
                continue
            self.heard = time.monotonic()
            return line if line.endswith(b"\n") else b""

    async def ended(self) -> int:
        """Wait until the worker has ended, and return its exit status; 0 when there was no worker.

        A worker that does not end is killed. If it still does not end, because a system call blocks it (dead file
        server), it counts as killed: it never runs code again.
        """
        if self._process is None:
            return 0
        for _ in range(2):
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(self._process.wait(), timeout=self._grace)
            self.kill()
        self._lost = True
        return -signal.SIGKILL

    def close(self) -> None:
        """Close the worker's stdin, which tells it to end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def discard(self) -> None:
        """Drop a worker that ended or was given up, and close its pipes; its further output is lost."""
        if self._process is not None:
            # A pipe that another process keeps open never closes by itself, and Process has no close method.
            transport: asyncio.SubprocessTransport = vars(self._process)["_transport"]
            transport.close()
        self._process = None

    def kill(self) -> None:
        """Kill the worker if it is still running."""
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def ending(status: int) -> str:
    """Return how a worker ended, as text: the name of a signal, or the exit status."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
