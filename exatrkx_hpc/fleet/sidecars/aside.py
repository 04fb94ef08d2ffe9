"""A sidecar in a thread of its own: however slow or broken it is, the endpoint neither waits for it nor ends."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.fleet.events import MetricsStoreEnded, MetricsStoreStarted, NotApplied
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.sidecars.base import Sidecar

_PART: Final = "prometheus"
#: Pauses between two tries to start the sidecar, and between two looks whether it runs, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE, _LOOK = 1.0, 60.0, 1.0
#: Seconds that stop() waits: the sidecar has 10 s to write its data.
_STOP_DEADLINE: Final = 15.0


class Aside:
    """Starts a sidecar with the first targets, keeps it running, and passes the targets on; all in its own thread."""

    def __init__(self, sidecar: Sidecar, *, job: str, tell: Tell, first_pause: float = _FIRST_PAUSE) -> None:
        """Prepare; nothing runs before the first targets."""
        self._sidecar = sidecar
        self._job = job
        self._tell = tell
        self._first_pause = first_pause
        self._wanted: tuple[Member, ...] | None = None
        self._given: tuple[str, ...] | None = None
        self._trouble = ""
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """The address of the sidecar's web page, `host:port`."""
        return self._sidecar.address

    def follow(self, targets: tuple[Member, ...], *, start: bool) -> None:
        """Let the sidecar follow `targets` from now on; it starts with the first call with `start`. Returns at once."""
        if self._thread is None and not start:
            return
        self._wanted = targets
        self._changed.set()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=_PART, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread is left; the next call tries again
                self._say(str(error))
                return
            self._thread = thread

    def stop(self) -> None:
        """Stop the sidecar; wait up to 15 s for it."""
        self._stopping.set()
        self._changed.set()
        if self._thread is not None:
            with contextlib.suppress(ExatrkxError, OSError):
                self._sidecar.stop()  # also ends the wait for a slow start
            self._thread.join(_STOP_DEADLINE)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    pause = self._step()
                except Exception as error:  # whatever fails here, the endpoint does not need it
                    self._say(str(error) or type(error).__name__)
                    pause = _LOOK
                self._changed.wait(pause)
                self._changed.clear()
        finally:
            with contextlib.suppress(Exception):
                self._sidecar.stop()

    def _step(self) -> float:
        """Bring the sidecar up to date; return the seconds until the next look."""
        if self._given is not None and not self._sidecar.alive():
            self._tell(MetricsStoreEnded(job=self._job))
            self._given = None
        if self._given is None:
            self._start()
            return _LOOK
        targets = self._wanted or ()
        if (names := _addresses(targets)) != self._given:
            self._sidecar.update(targets)
            self._given = names
            self._trouble = ""
        return _LOOK

    def _start(self) -> None:
        """Start the sidecar, with pauses that grow, until it runs or the end."""
        pause = self._first_pause
        while not self._stopping.is_set():
            targets = self._wanted or ()
            try:
                self._sidecar.start(targets)
            except (ExatrkxError, OSError, RuntimeError) as error:
                if self._stopping.is_set():
                    return
                self._say(error.strerror or str(error) if isinstance(error, OSError) else str(error))
            else:
                self._given = _addresses(targets)
                self._trouble = ""
                self._tell(MetricsStoreStarted(job=self._job, address=self.address))
                return
            self._stopping.wait(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _say(self, reason: str) -> None:
        """Tell a trouble once; the endpoint goes on without the sidecar."""
        if reason != self._trouble:
            self._tell(NotApplied(job=self._job, part=_PART, reason=f"{reason}; the endpoint does not need it"))
        self._trouble = reason


def _addresses(members: tuple[Member, ...]) -> tuple[str, ...]:
    """Return what the targets depend on: a server may choose other ports at its next start."""
    return tuple(f"{member.name} {member.metrics}" for member in members)
