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
"""Seconds that a worker gets to end by itself, and again to end once it is killed."""

_TOO_MANY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker: this process's, tuned for large messages and many processes."""
    tuned = {
        # glibc gives large blocks back to the kernel after each message; a 1 MB send is 2.6 times faster
        # when it keeps them.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GRPC_VERBOSITY": "NONE",
        "PYTHONSAFEPATH": "1",  # a numpy.py in the folder of the events is not ours (Python 3.11 and later)
    }
    return {**tuned, **os.environ}


class WorkerProcess:
    """A worker process, restarted when it dies, and the events that it has not finished."""

    def __init__(self, *, grace: float = GRACE) -> None:
        """Start no process yet; `grace` is how long a process may take to end, in seconds."""
        self._grace = grace
        self._killed = self._lost = False
        self.outstanding: dict[str, EventFile] = {}
        # Events whose labels the worker has, in no part yet; in the order in which parts take them.
        self.told: dict[str, tuple[EventFile, Result]] = {}
        self._asked = False
        self.done = 0
        self.heard = 0.0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        """Whether a worker is here that is not known to have ended."""
        return self._process is not None and self._process.returncode is None and not self._lost

    async def start(self, task: Task) -> None:
        """Start a worker here, in place of one that ended, and tell it its task.

        Raises ConfigError when so many workers are too many for this machine, MissingComponent when Python
        cannot be started at all.
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
        """Hand an event to the worker, and remember that it has it."""
        if not self.outstanding:
            self.heard = time.monotonic()  # from now on an answer is due
        self.outstanding[event.name] = event
        rows = {} if event.rows is None else {"rows": dataclasses.asdict(event.rows)}
        self._send({"name": event.name, "path": str(event.path), **rows})

    def tell(self, result: Result) -> None:
        """Take down that the worker has the labels of an event, in no part yet."""
        self.told[result.name] = (self.outstanding.pop(result.name), result)

    def take_part(self, part: Part) -> list[Result]:
        """Return the results that are in a part now: the ones that were told first."""
        self._asked = False
        names = list(itertools.islice(self.told, part.events))
        return [self.told.pop(name)[1] for name in names]

    def ask_for_part(self) -> None:
        """Let a worker that has nothing else to do write what it collected."""
        if self.told and not self.outstanding and not self._asked:
            self._asked = True
            self._send({"write": True})

    def take_back(self) -> list[EventFile]:
        """Return the events that the worker had labels for, in no part; they must be done again."""
        events = [event for event, _ in self.told.values()]
        self.told.clear()
        return events

    def _send(self, fields: dict[str, object]) -> None:
        # A worker that just died takes no line; its events come back when its stdout ends.
        pipe = self._process.stdin if self._process is not None else None
        if pipe is not None and not pipe.is_closing():
            pipe.write((json.dumps(fields) + "\n").encode())

    async def answer(self, longest: float) -> bytes:
        """Return the worker's next whole line; nothing when it has ended.

        A worker that has events and says nothing for `longest` seconds hangs, and is killed; a killed one
        counts as ended a moment later, even if something keeps its stdout open.
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
        """Wait for the end of a worker that says no more, and return its exit status; 0 when there was none.

        One that does not end is killed. One that even then does not end, because a call of the kernel holds it
        (a dead file server), is given up as killed: it will never run again.
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
        """Tell the worker to end, by the end of its stdin."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def discard(self) -> None:
        """Let go of a worker that ended or was given up, with its pipes; what it still says is not heard."""
        if self._process is not None:
            # A pipe that somebody else keeps open never closes by itself, and Process has no close of its own.
            transport: asyncio.SubprocessTransport = vars(self._process)["_transport"]
            transport.close()
        self._process = None

    def kill(self) -> None:
        """Kill the worker if it still runs."""
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def ending(status: int) -> str:
    """Return how a worker ended, in words: the name of a signal, or an exit status."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
