"""Distribute events to worker processes; return the events of a dead worker to the queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError, OutputError
from exatrkx_hpc.work.events.source import EventFile
from exatrkx_hpc.work.inference.retry import NoEntry
from exatrkx_hpc.work.results.outcome import Failed, Result, read_answer
from exatrkx_hpc.work.results.parts import Part
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.faults import DEATHS_OF_ONE_EVENT, Faults
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.worker import LOOKAHEAD, Task
from exatrkx_hpc.work.run.worker_process import GRACE, WorkerProcess, ending

COMMIT: Final = 0.5
"""Seconds between two commits of the ledger; after a kill, a resumed run repeats uncommitted events."""


class Coordinator:
    """One run over the events of `accounts`; call `run` once, then `report`."""

    def __init__(
        self,
        task: Task,
        accounts: Accounts,
        *,
        workers: int,
        show: ShowProgress,
        longest_silence: float | None = None,
        spare: float = 60.0,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare without starting anything. `show` is called in the event loop at the start and after each event.

        A worker that has events but is silent for `longest_silence` seconds is killed; by default this is `spare`
        seconds more than two consecutive requests may take. `grace` is the time for a worker to end, in seconds.
        """
        self._task = task
        self._accounts = accounts
        self._waiting: deque[EventFile] = deque()
        # Events of dead workers. One of them may have killed its worker, so each is sent alone, after all others.
        self._suspects: deque[EventFile] = deque()
        self._workers = [WorkerProcess(grace=grace) for _ in range(workers)]
        self._show = show
        self._grace = grace
        self._longest_silence = longest_silence or spare + 2 * (task.patience + 2 * task.request_timeout)
        self._clock = clock
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._faults = Faults(server=task.server, patience=task.patience, workers=workers, clock=clock)
        self._begin = self._last_answer = 0.0
        self.stopped: str | None = None
        self.error: ExatrkxError | None = None

    def report(self) -> Report:
        """Return the figures so far; raises OutputError when the ledger cannot be read."""
        task, seconds = self._task, self._last_answer - self._begin
        workers = tuple(worker.done for worker in self._workers)
        return self._accounts.report(
            model=task.models, mode=task.mode, seconds=seconds, workers=workers, stopped=self.stopped
        )

    def stop(self, reason: str) -> None:
        """End the run early and drop requests in flight; the first reason counts. Call it in the event loop."""
        if not self._over.is_set():
            self.stopped = reason
            self._over.set()

    def interrupt(self, reason: str) -> None:
        """Do what `stop` does, from another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop, reason)
        else:  # not started yet: it ends at once when it starts
            self.stop(reason)

    async def run(self) -> None:
        """Run until every event has an answer or `stop` is called; then end all workers and close the accounts."""
        self._loop = asyncio.get_running_loop()
        self._begin = self._last_answer = self._clock()
        self._faults.begin()
        keepers: list[asyncio.Task[None]] = []
        clerk = asyncio.create_task(self._commit_often())
        try:
            for worker in self._workers:
                # One after the other, so that a failure leaves no start unfinished.
                await self._start(worker)
            self._feed()
            self._show_tally()
            keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait({over, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
        finally:
            self._over.set()
            clerk.cancel()
            await self._dismiss(keepers)
            self._note(lambda: self._accounts.close(self.stopped))

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(COMMIT)
            self._note(self._accounts.commit)

    def _note(self, write: Callable[[], None]) -> None:
        """Write to the accounts; a write error ends the run."""
        try:
            write()
        except OutputError as error:
            self.error = self.error or error
            self.stop(str(error))

    async def _start(self, worker: WorkerProcess) -> None:
        """Start a worker, unless the run is over; a failed start ends the run."""
        if self._over.is_set():
            return
        try:
            await worker.start(self._task)
        except ExatrkxError as error:
            self._break_off(error)
        if self._over.is_set():  # in the meantime
            worker.close()

    def _break_off(self, error: ExatrkxError) -> None:
        if not self._over.is_set():
            self.error = error
        self.stop(str(error))

    async def _dismiss(self, keepers: list[asyncio.Task[None]]) -> None:
        """Close the workers, count their last answers, kill those that do not end; raise errors of the keepers.

        This takes at most four times the grace.
        """
        for worker in self._workers:
            worker.close()
        if keepers:
            await asyncio.wait(keepers, timeout=self._grace)
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*(worker.ended() for worker in self._workers))
        if keepers:
            _, deaf = await asyncio.wait(keepers, timeout=self._grace)
            for keeper in deaf:  # its worker was killed, but another process keeps the pipe open
                keeper.cancel()
        outcomes = await asyncio.gather(*keepers, return_exceptions=True)
        for worker in self._workers:
            self._accounts.forget((*worker.outstanding, *worker.told))
            worker.discard()
        for fault in (one for one in outcomes if isinstance(one, Exception)):
            raise fault

    async def _keep(self, worker: WorkerProcess) -> None:
        """Take the answers of one worker, and restart it when it dies, until the run is over."""
        while True:
            while line := await worker.answer(self._longest_silence):
                self._take(worker, read_answer(line))
            status = await worker.ended()
            if self._over.is_set():
                return
            worker.close()
            self._worker_ended(worker, status)
            if self._over.is_set():
                return
            await self._start(worker)
            self._feed()

    def _take(self, worker: WorkerProcess, answer: Result | Failed | Part) -> None:
        self._last_answer = self._clock()
        if isinstance(answer, Failed):
            if answer.kind in ("output", "access"):  # it would be the same for every event, and none is the cause
                worker.outstanding.pop(answer.event, None)  # absent if it waited for its part
                self._break_off(OutputError(answer.reason) if answer.kind == "output" else NoEntry(answer.reason))
            else:
                self._fail(worker.outstanding.pop(answer.event), answer.kind, answer.reason)
        elif isinstance(answer, Part):
            results = [(result, self._good(worker, result)) for result in worker.take_part(answer)]
            self._note(lambda: self._accounts.add_part(answer, results))
        else:
            self._faults.answered()
            if answer.result_size is None:
                worker.tell(answer)
            else:
                del worker.outstanding[answer.name]
                attempts = self._good(worker, answer)
                self._note(lambda: self._accounts.add(answer, attempts=attempts))
        self._settle()

    def _good(self, worker: WorkerProcess, result: Result) -> int:
        """Count an event whose result is on disk; return the number of workers that tried it."""
        worker.done += 1
        return self._faults.written(result.name)

    def _fail(self, event: EventFile, kind: str, reason: str) -> None:
        failed = Failed(event=event.name, kind=kind, reason=reason)
        attempts = self._faults.given_up(event.name, kind)
        self._note(lambda: self._accounts.fail(failed, attempts=attempts))
        self._stop_for(self._faults.of_failure(kind, reason))

    def _stop_for(self, reason: str | None) -> None:
        if reason is not None:
            self.stop(reason)

    def _worker_ended(self, worker: WorkerProcess, status: int) -> None:
        """Take back the events of a dead worker; give up an event whose workers died too often."""
        how = ending(status)
        self._accounts.forget((*worker.outstanding, *worker.told))
        for event in worker.outstanding.values():
            if self._faults.killed_again(event.name):
                self._fail(event, "worker", f"its worker died {DEATHS_OF_ONE_EVENT} times, last by {how}")
            else:
                self._suspects.append(event)
        worker.outstanding.clear()
        self._waiting.extend(worker.take_back())  # not suspects: their requests had finished
        self._stop_for(self._faults.of_death(how))
        self._settle()

    def _settle(self) -> None:
        """Show the tally, then end the run or hand out more events."""
        self._show_tally()
        if self._accounts.complete:
            self._over.set()
        self._feed()

    def _show_tally(self) -> None:
        # A worker reads the events beyond its requests in flight ahead.
        in_flight = sum(min(len(worker.outstanding), self._task.in_flight) for worker in self._workers)
        self._show(self._accounts.tally(in_flight=in_flight))

    def _more(self) -> bool:
        """Return whether an event waits; fetch the next events from the accounts if needed."""
        if not self._waiting:
            self._note(lambda: self._waiting.extend(self._accounts.page()))
        return bool(self._waiting)

    def _feed(self) -> None:
        """Give each event to the worker with the fewest events, until no worker has room."""
        living = [worker for worker in self._workers if worker.alive]
        while living and not self._over.is_set():
            more = self._more()
            if not more and not self._suspects:
                for worker in living:
                    worker.ask_for_part()
                return
            worker = min(living, key=lambda one: len(one.outstanding))
            if len(worker.outstanding) >= (self._task.in_flight + LOOKAHEAD if more else 1):
                return
            worker.give(self._waiting.popleft() if more else self._suspects.popleft())
