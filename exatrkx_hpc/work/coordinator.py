"""Keeps worker processes busy: hands out events as they pull, and loses none when a worker dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.errors import ExatrkxError, OutputError
from exatrkx_hpc.work.events import EventFile
from exatrkx_hpc.work.report import Failed, Latency, Report, ShowProgress, Tally
from exatrkx_hpc.work.slot import GRACE, Slot
from exatrkx_hpc.work.worker import LOOKAHEAD, Task

DEATHS_OF_ONE_EVENT: Final = 3
"""An event is given up when its worker died this often: it may be what kills it."""

DEAD_ENDPOINT: Final = 5.0
"""Seconds without any labels after which an exhausted patience stops the run, if the patience is shorter."""


class Coordinator:
    """One run over a list of events; `run` it once, then ask for its `report`."""

    def __init__(
        self,
        task: Task,
        events: Sequence[EventFile],
        *,
        workers: int,
        show: ShowProgress,
        longest_silence: float | None = None,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is started yet. `show` is called in the event loop after each event.

        `longest_silence` is when a worker that has events and says nothing is killed, in seconds; by default
        well above what two requests in a row may take. `grace` is how long a worker may take to end.
        """
        self._task = task
        self._events = len(events)
        self._waiting = deque(events)
        # What a dead worker had. One of these may have killed it, so each goes out alone, after the others.
        self._suspects: deque[EventFile] = deque()
        self._deaths: Counter[str] = Counter()
        self._deaths_in_a_row = 0
        self._slots = [Slot(grace=grace) for _ in range(workers)]
        self._show = show
        self._grace = grace
        self._longest_silence = longest_silence or 60.0 + 2 * (task.patience + 2 * task.request_timeout)
        self._clock = clock
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seconds = array("d")
        self._failed: list[Failed] = []
        self._hits = 0
        self._retries = 0
        self._begin = self._last_answer = self._last_good = 0.0
        self.stopped: str | None = None
        self.error: ExatrkxError | None = None

    def report(self) -> Report:
        """Return the figures so far."""
        return Report(
            server=self._task.server,
            model=self._task.model,
            events=self._events,
            done=len(self._seconds),
            failed=tuple(self._failed),
            hits=self._hits,
            seconds=self._last_answer - self._begin,
            latency_ms=Latency.of(self._seconds),
            retries=self._retries,
            workers=tuple(slot.done for slot in self._slots),
            stopped=self.stopped,
        )

    def stop(self, reason: str) -> None:
        """End the run early: requests in flight are dropped, the first reason counts. Call it in the loop."""
        if not self._over.is_set():
            self.stopped = reason
            self._over.set()

    def interrupt(self, reason: str) -> None:
        """Do what `stop` does, from another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop, reason)
        else:  # not begun yet; then it ends as it begins
            self.stop(reason)

    async def run(self) -> None:
        """Run until every event has an answer or `stop` is called; no worker is left when it returns."""
        self._loop = asyncio.get_running_loop()
        self._begin = self._last_answer = self._last_good = self._clock()
        keepers: list[asyncio.Task[None]] = []
        try:
            for slot in self._slots:
                # One after the other: after a failure no start is half done.
                await self._start(slot)
            self._feed()
            keepers = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({over, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
        finally:
            self._over.set()
            await self._dismiss(keepers)

    async def _start(self, slot: Slot) -> None:
        """Start a worker, unless the run is over; one that cannot be started ends the run."""
        if self._over.is_set():
            return
        try:
            await slot.start(self._task)
        except ExatrkxError as error:
            self._break_off(error)
        if self._over.is_set():  # in the meantime
            slot.close()

    def _break_off(self, error: ExatrkxError) -> None:
        if not self._over.is_set():
            self.error = error
        self.stop(str(error))

    async def _dismiss(self, keepers: list[asyncio.Task[None]]) -> None:
        """Close the workers, count what they still say, kill what does not end; raise a keeper's fault.

        It takes four times the grace at most, whatever the workers do.
        """
        for slot in self._slots:
            slot.close()
        if keepers:
            await asyncio.wait(keepers, timeout=self._grace)
        for slot in self._slots:
            slot.kill()
        await asyncio.gather(*(slot.ended() for slot in self._slots))
        if keepers:
            _, deaf = await asyncio.wait(keepers, timeout=self._grace)
            for keeper in deaf:  # its worker was killed, but something keeps the pipe open
                keeper.cancel()
        outcomes = await asyncio.gather(*keepers, return_exceptions=True)
        for slot in self._slots:
            self._forget_labels(slot)
            slot.discard()
        for fault in (one for one in outcomes if isinstance(one, Exception)):
            raise fault

    async def _keep(self, slot: Slot) -> None:
        """Listen to one worker, and replace it when it dies, until the run is over."""
        while True:
            while line := await slot.answer(self._longest_silence):
                self._take(slot, json.loads(line))
            status = await slot.ended()
            if self._over.is_set():
                return
            slot.close()
            self._bury(slot, status)
            if self._over.is_set():
                return
            await self._start(slot)
            self._feed()

    def _take(self, slot: Slot, answer: dict[str, object]) -> None:
        event = slot.outstanding.pop(str(answer["name"]))
        self._last_answer = self._clock()
        if "kind" not in answer:
            self._last_good = self._last_answer
            self._deaths_in_a_row = 0
            self._seconds.append(float(str(answer["seconds"])))
            self._hits += int(str(answer["hits"]))
            self._retries += int(str(answer["retries"]))
            slot.done += 1
        elif answer["kind"] == "output":
            self._break_off(OutputError(str(answer["reason"])))
        else:
            self._fail(event, str(answer["kind"]), str(answer["reason"]))
        self._settle()

    def _fail(self, event: EventFile, kind: str, reason: str) -> None:
        self._failed.append(Failed(event=event.name, kind=kind, reason=reason))
        silence = self._clock() - self._last_good
        if kind == "endpoint" and silence >= max(self._task.patience, DEAD_ENDPOINT):
            self.stop(f"no labels came from {self._task.server} for {silence:.0f} s ({reason})")

    def _bury(self, slot: Slot, status: int) -> None:
        """Take the events of a dead worker back; give up those that were there too often."""
        self._deaths_in_a_row += 1
        self._forget_labels(slot)
        for event in slot.outstanding.values():
            self._deaths[event.name] += 1
            if self._deaths[event.name] < DEATHS_OF_ONE_EVENT:
                self._suspects.append(event)
            else:
                often = f"its worker ended {DEATHS_OF_ONE_EVENT} times, the last time by {_ending(status)}"
                self._fail(event, "worker", often)
        slot.outstanding.clear()
        if self._deaths_in_a_row > DEATHS_OF_ONE_EVENT * (len(self._slots) + 1):
            self.stop(f"the workers keep ending, the last one by {_ending(status)}; see what they printed")
        self._settle()

    def _forget_labels(self, slot: Slot) -> None:
        """Remove what a dead worker wrote and did not live to tell: only a done event has a label file."""
        for name in slot.outstanding:
            with contextlib.suppress(OSError):
                Path(self._task.labels, f"{name}.csv").unlink()

    def _settle(self) -> None:
        """Show the tally, and end the run or hand out more."""
        done, failed = len(self._seconds), len(self._failed)
        self._show(Tally(events=self._events, done=done, failed=failed))
        if done + failed == self._events:
            self._over.set()
        self._feed()

    def _feed(self) -> None:
        """Give each event to the worker that has the fewest, as long as one has room."""
        living = [slot for slot in self._slots if slot.alive]
        if self._over.is_set() or not living:
            return
        while self._waiting or self._suspects:
            slot = min(living, key=lambda one: len(one.outstanding))
            room = self._task.in_flight + LOOKAHEAD if self._waiting else 1
            if len(slot.outstanding) >= room:
                return
            slot.give(self._waiting.popleft() if self._waiting else self._suspects.popleft())


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
