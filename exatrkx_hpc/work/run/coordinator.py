"""Distribute events to worker processes; decide what happens to events that were not answered."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError, OutputError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.events.source import EventFile
from exatrkx_hpc.work.inference.blame import ALONE_AFTER, Case, Decision, Judge, Verdict, poisoned
from exatrkx_hpc.work.inference.retry import Cause, NoEntry
from exatrkx_hpc.work.news import EventPoisoned
from exatrkx_hpc.work.results.outcome import Answered, Failed, Result, Retried, Undecided, read_answer
from exatrkx_hpc.work.results.parts import Part
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.faults import DEATHS_OF_ONE_EVENT, Faults
from exatrkx_hpc.work.run.member_log import MemberLog
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.silence import Listener
from exatrkx_hpc.work.run.worker import LOOKAHEAD, Task
from exatrkx_hpc.work.run.worker_process import GRACE, WorkerProcess, ending
from exatrkx_hpc.work.workloads.base import DIRECT

COMMIT: Final = 0.5
"""Seconds between two commits of the ledger; after a kill, a resumed run repeats uncommitted events."""

LONGEST_DIRECT: Final = 3600.0
"""Seconds that a worker in mode direct may compute one event. No network is waited for, so its limits do not count."""


class Coordinator:
    """One run over the events of `accounts`; call `run` once, then `report`."""

    def __init__(
        self,
        task: Task,
        accounts: Accounts,
        *,
        workers: int,
        show: ShowProgress,
        is_ready: Callable[[], Awaitable[bool]],
        longest_silence: float | None = None,
        spare: float = 60.0,
        grace: float = GRACE,
        tell: Tell = untold,
        member_log: MemberLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare without starting anything.

        `show` is called in the event loop at the start and after each event. `is_ready` asks the endpoint whether it
        serves every model of the run.

        A worker that has events but is silent for `longest_silence` seconds is killed; by default this is `spare`
        seconds more than eight requests may take, because a worker reports each failed request, and in mode direct
        `LONGEST_DIRECT`. `grace` is the time for a worker to end, in seconds. `member_log` reports the servers'
        failures.
        """
        self._task = task
        self._accounts = accounts
        self._waiting: deque[EventFile] = deque()
        # Events that cost a server, or that the endpoint did not take in time: they go to the end.
        self._later: deque[EventFile] = deque()
        # Events of dead workers. One of them may have killed its worker, so each is alone in its worker, after all
        # others.
        self._suspects: deque[EventFile] = deque()
        # Events that cost several servers: each is alone in the whole run, after all others.
        self._alone: deque[EventFile] = deque()
        self._lonely = ""  # the event that is delivered alone now
        self._paused = 0  # events that come back to a queue after a pause
        self._cases: dict[str, Case] = {}
        self._judge = Judge(patience=task.patience, proven=accounts.proven)
        # Events that the endpoint did not take in time: held while it is asked whether it is ready; once more later.
        self._held: list[tuple[EventFile, str]] = []
        self._inquest: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None
        self._again: set[str] = set()
        self._is_ready = is_ready
        self._tell = tell
        self._member_log = member_log or MemberLog(None)
        self._listener = Listener(server=task.server, patience=task.patience, tell=tell, clock=clock)
        self._workers = [WorkerProcess(grace=grace) for _ in range(workers)]
        self._show = show
        self._grace = grace
        network = spare + 8 * task.request_timeout
        self._longest_silence = longest_silence or (LONGEST_DIRECT if task.mode == DIRECT else network)
        self._clock = clock
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._faults = Faults(server=task.server, patience=task.patience, workers=workers, clock=clock)
        self._begin = self._last_answer = 0.0
        self.stopped: str | None = None
        self.interrupted = False  # stopped from outside, such as by a signal
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
        self.interrupted = True
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        if not self._over.is_set():
            self.stopped = reason
            self._over.set()

    def fail(self, error: ExatrkxError) -> None:
        """Do what `stop` does, because of an error that the run then ends with; also after the last event.

        Call it in the event loop.
        """
        if not self._over.is_set():
            self._break_off(error)
            return
        self.error = self.error or error
        self.stopped = self.stopped or str(error)
        self._note(lambda: self._accounts.close(self.stopped))

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
            if self._inquest is not None:
                self._inquest.cancel()
            await self._dismiss(keepers)
            self._member_log.write(last=True)
            self._note(lambda: self._accounts.close(self.stopped))
        if self._fault is not None:
            raise self._fault

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(COMMIT)
            self._note(self._accounts.commit)
            self._member_log.write()
            if self._listener.look() is not None:
                self._show_tally()

    def _note(self, write: Callable[[], None]) -> None:
        """Write to the accounts; a write error ends the run."""
        try:
            write()
        except OutputError as error:
            self.error = self.error or error
            self._stop(str(error))

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
        self._stop(str(error))

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

    def _take(self, worker: WorkerProcess, answer: Answered) -> None:
        if isinstance(answer, Retried):
            self._accounts.retried(answer.event)
            self._listener.failed(answer.reason)
            return
        self._last_answer = self._clock()
        if isinstance(answer, Failed):
            self._take_failure(worker, answer)
        elif isinstance(answer, Undecided):
            event = worker.outstanding.pop(answer.event)
            self._decide(event, answer, alone=self._was_alone(event))
        elif isinstance(answer, Part):
            results = [(result, self._good(worker, result)) for result in worker.take_part(answer)]
            self._note(lambda: self._accounts.add_part(answer, results))
        else:
            self._take_result(worker, answer)
        self._settle()

    def _take_result(self, worker: WorkerProcess, result: Result) -> None:
        self._faults.answered()
        self._listener.answered()
        self._judge.answered(result.name, result.member)
        self._member_log.answered(result.member)
        self._was_alone(worker.outstanding[result.name])
        self._forget(result.name)
        if result.result_size is None:
            worker.tell(result)
        else:
            del worker.outstanding[result.name]
            attempts = self._good(worker, result)
            self._note(lambda: self._accounts.add(result, attempts=attempts))

    def _take_failure(self, worker: WorkerProcess, failed: Failed) -> None:
        if failed.kind in ("output", "access"):  # it would be the same for every event, and none is the cause
            worker.outstanding.pop(failed.event, None)  # absent if it waited for its part
            self._break_off(OutputError(failed.reason) if failed.kind == "output" else NoEntry(failed.reason))
            return
        event = worker.outstanding.pop(failed.event)
        self._was_alone(event)
        if failed.kind == "endpoint":
            self._not_taken(event, failed.reason)
        else:
            self._fail(event, failed.kind, failed.reason)

    def _was_alone(self, event: EventFile) -> bool:
        """Return whether this was the event that was delivered alone; then others may go."""
        if self._lonely != event.name:
            return False
        self._lonely = ""
        return True

    def _case(self, event: str) -> Case:
        """Return what is known of an event in trouble, with the strikes of earlier runs."""
        if event not in self._cases:
            self._cases[event] = Case(event=event, strikes=list(self._accounts.strikes.get(event, ())))
        return self._cases[event]

    def _forget(self, event: str) -> None:
        self._cases.pop(event, None)
        self._again.discard(event)

    def _decide(self, event: EventFile, delivery: Undecided, *, alone: bool) -> None:
        """Note a delivery that was not answered well, and decide what happens to the event."""
        cause = Cause(delivery.cause)
        if cause is Cause.REFUSED:
            self._listener.answered()
        else:
            self._listener.failed(delivery.reason)
        self._member_log.failed(delivery.member, cause)
        case = self._case(event.name)
        verdict = self._judge.failed(case, cause, delivery.member, alone=alone, now=self._clock())
        if (strike := verdict.strike) is not None:
            self._note(lambda: self._accounts.strike(event.name, strike))
        if not self._over.is_set():  # otherwise the event stays for the next run
            self._execute(verdict, event, case, delivery.reason)
            if cause is not Cause.REFUSED:
                self._suspect_endpoint(delivery.reason)

    def _execute(self, verdict: Verdict, event: EventFile, case: Case, reason: str) -> None:
        if verdict.decision in {Decision.AGAIN, Decision.LAST}:
            self._accounts.retried(event.name)
            soon = self._waiting if verdict.decision is Decision.AGAIN else self._later
            self._pause(verdict.pause, event, self._alone if case.alone else soon)
        elif verdict.decision is Decision.POISON:
            why = poisoned(case, reason)
            members = tuple(sorted({strike.member for strike in case.strikes if strike.member}))
            self._tell(EventPoisoned(event=event.name, deliveries=len(case.strikes), members=members, reason=why))
            self._fail(event, "poison", why)
        else:
            self._fail(event, "model" if verdict.decision is Decision.REFUSED else "endpoint", reason)

    def _pause(self, seconds: float, event: EventFile, queue: deque[EventFile]) -> None:
        """Put an event into a queue after a pause."""

        def back() -> None:
            self._paused -= 1
            if not self._over.is_set():
                queue.append(event)
                self._feed()

        self._paused += 1
        asyncio.get_running_loop().call_later(seconds, back)

    def _not_taken(self, event: EventFile, reason: str) -> None:
        """Deliver an event that the endpoint did not take in time once more, later, unless the endpoint is dead."""
        if self._faults.silent is not None:
            self._held.append((event, reason))
            self._suspect_endpoint(reason)
        elif event.name in self._again:
            self._fail(event, "endpoint", reason)
        else:
            self._again.add(event.name)
            self._accounts.retried(event.name)
            (self._alone if self._case(event.name).alone else self._later).append(event)

    def _suspect_endpoint(self, reason: str) -> None:
        """Ask the endpoint whether it is ready, if it has given no result for long; stop the run if it is not."""
        if self._faults.silent is not None and self._inquest is None and not self._over.is_set():
            self._inquest = asyncio.create_task(self._inquire(reason))
            self._inquest.add_done_callback(self._inquired)

    def _inquired(self, inquest: asyncio.Task[None]) -> None:
        if not inquest.cancelled() and (fault := inquest.exception()) is not None:
            self._fault = fault
            self._over.set()

    async def _inquire(self, reason: str) -> None:
        ready = await self._is_ready()
        self._inquest = None
        held, self._held = self._held, []
        if self._over.is_set():
            return
        if self._faults.silent is None:  # there was a result in the meantime
            ready = True
        elif ready and self._faults.lies and self._judge.many_suffer:
            ready, reason = False, f"although it says that it is ready; {reason}"
        stopped = self._faults.dead(reason)
        if ready:
            self._faults.lives()
        for event, why in held:
            if ready:
                self._not_taken(event, why)
            else:
                self._fail(event, "endpoint", why)
        if not ready:
            self._stop(stopped)
        self._settle()

    def _good(self, worker: WorkerProcess, result: Result) -> int:
        """Count an event whose result is on disk; return the number of workers that tried it."""
        worker.done += 1
        return self._faults.written(result.name)

    def _fail(self, event: EventFile, kind: str, reason: str) -> None:
        self._forget(event.name)
        failed = Failed(event=event.name, kind=kind, reason=reason)
        attempts = self._faults.given_up(event.name, kind)
        self._note(lambda: self._accounts.fail(failed, attempts=attempts))
        self._stop_for(self._faults.of_failure(kind, reason))

    def _stop_for(self, reason: str | None) -> None:
        if reason is not None:
            self._stop(reason)

    def _worker_ended(self, worker: WorkerProcess, status: int) -> None:
        """Take back the events of a dead worker; give up an event whose workers died too often."""
        how = ending(status)
        self._accounts.forget((*worker.outstanding, *worker.told))
        for event in worker.outstanding.values():
            alone = self._was_alone(event)
            if self._faults.killed_again(event.name):
                self._fail(event, "worker", f"its worker died {DEATHS_OF_ONE_EVENT} times, last by {how}")
            else:
                (self._alone if alone else self._suspects).append(event)
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
        self._show(self._accounts.tally(in_flight=in_flight, silence=self._listener.silence))

    def _more(self) -> bool:
        """Return whether an event waits; fetch the next events from the accounts if needed.

        While many events pause, no further ones are fetched: the memory must not grow with the failures.
        """
        if not self._waiting and self._paused <= 2 * self._room * len(self._workers):
            self._note(self._fetch)
        return bool(self._waiting)

    def _fetch(self) -> None:
        while not self._waiting and (page := self._accounts.page()):
            for event in page:
                alone = len(self._accounts.strikes.get(event.name, ())) >= ALONE_AFTER
                (self._alone if alone else self._waiting).append(event)

    @property
    def _room(self) -> int:
        """The number of events that one worker may hold."""
        return self._task.in_flight + LOOKAHEAD

    def _next(self) -> deque[EventFile] | None:
        """Return the queue of the next event; None if no event waits now."""
        if self._more():
            return self._waiting
        return next((queue for queue in (self._later, self._suspects, self._alone) if queue), None)

    def _feed(self) -> None:
        """Give each event to the worker with the fewest events, until no worker has room."""
        living = [worker for worker in self._workers if worker.alive]
        while living and not self._over.is_set() and not self._lonely:
            queue = self._next()
            if queue is None:
                for worker in living:
                    worker.ask_for_part()
                return
            worker = min(living, key=lambda one: len(one.outstanding))
            if queue is self._alone:
                if not self._paused and not any(one.outstanding for one in self._workers):
                    self._lonely = queue[0].name
                    worker.give(queue.popleft())
                return
            if len(worker.outstanding) >= (1 if queue is self._suspects else self._room):
                return
            worker.give(queue.popleft())
