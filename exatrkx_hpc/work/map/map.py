"""Many events from an iterator through one endpoint: the implementation of `Endpoint.map`.

The caller's thread reads events and takes results, the endpoint's event loop sends requests, and a third thread writes
the ledger, if there is one. So reading, inference, writing and the caller's own work overlap.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from exatrkx_hpc.base.errors import ConfigError, EndpointError, InputError, ModelError, OutputError
from exatrkx_hpc.base.readable import one_line
from exatrkx_hpc.base.signals import deferred_signals, unwound
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.inference.retry import UnknownModel
from exatrkx_hpc.work.map.found import Event, Found, is_named, read_event
from exatrkx_hpc.work.map.map_ledger import Scribe
from exatrkx_hpc.work.run.faults import BROKEN_MODEL
from exatrkx_hpc.work.run.progress import ShowProgress, Tally, progress_bar
from exatrkx_hpc.work.run.worker import LOOKAHEAD
from exatrkx_hpc.work.workloads.watch import Watch

if TYPE_CHECKING:
    from exatrkx_hpc.work.workloads.given import Given

T = TypeVar("T")

#: Prefix of the names of our own threads.
_OURS: Final = "exatrkx-"
#: Keeps every open map alive. If an iterator is dropped, the garbage collector must collect only the iterator: it
#: finalizes objects in any order, such as the folder lock before the ledger, and may end the ledger thread first.
_OPEN: Final[set[Flow]] = set()


class Submit(Protocol):
    """Runs a coroutine in the endpoint's event loop; raises EndpointError when the endpoint is closed."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> concurrent.futures.Future[T]:
        """Return a future of the coroutine's result."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """Options of a map: requests in flight, order of the results, progress display.

    `events` is the expected number of events, 0 if unknown.
    """

    in_flight: int
    ordered: bool
    progress: bool | ShowProgress = False
    events: int = 0

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ConfigError(f"in_flight must be at least 1, not {self.in_flight}")


class Flow:
    """Events on their way through one endpoint; iterate its `results` once."""

    def __init__(self, submit: Submit, client: Client, way: Way, scribe: Scribe | None, watch: Watch) -> None:
        """Prepare without sending or opening anything; `scribe` keeps the ledger, if there is one."""
        self._submit, self._client, self._way, self._scribe, self._watch = submit, client, way, scribe, watch
        self._ordered = way.ordered
        self._free = asyncio.Semaphore(way.in_flight)
        self._beginning, self._begun = asyncio.Lock(), False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{_OURS}ledger")
        # Events sent and not yet taken, in input order; and the finished ones among them, in order of completion.
        self._out: dict[concurrent.futures.Future[Found], None] = {}
        self._finished: queue.SimpleQueue[concurrent.futures.Future[Found]] = queue.SimpleQueue()
        self._given = self._retries = 0
        self._ends: Counter[bool] = Counter()
        self._members: Counter[str] = Counter()
        self._in_a_row: Counter[type[Exception]] = Counter()

    def results(self, events: Iterable[object]) -> Iterator[Any]:
        """Yield the Found of each named event; for events without names their results, in the order of `events`."""
        _OPEN.add(self)
        try:
            with self._progress() as show:
                yield from self._results(events, show)
        except BaseException as error:
            said = {KeyboardInterrupt: "stopped by SIGINT", GeneratorExit: "the iterator was closed"}
            if isinstance(error, SystemExit) and (code := unwound()) is not None:
                said[SystemExit] = f"stopped by {signal.Signals(code - 128).name}"
            with contextlib.suppress(OutputError):  # the disk may be the problem, and that error is already raised
                self._close(said.get(type(error)) or one_line(repr(error)))
            raise
        self._close(None)

    def _results(self, events: Iterable[object], show: ShowProgress) -> Iterator[Any]:
        if self._scribe is not None:
            self._thread.submit(self._scribe.open).result()
        show(self._tally())
        named: bool | None = None
        for event in events:
            named = self._give(event, named)
            # Named events beyond `in_flight` wait for a free request, are looked up in the ledger, or are written.
            if len(self._out) >= self._way.in_flight + LOOKAHEAD * named or self._ready():
                yield self._take(show) if named else self._take(show).result
        while self._out:
            yield self._take(show) if named else self._take(show).result

    def _progress(self) -> contextlib.AbstractContextManager[ShowProgress]:
        progress = self._way.progress
        return contextlib.nullcontext(progress) if callable(progress) else progress_bar(quiet=not progress)

    def _give(self, event: object, named: bool | None) -> bool:
        """Submit an event and return whether it has a name; raises InputError unless all events or none have one."""
        has_name = is_named(event)
        if has_name is not (has_name if named is None else named):
            raise InputError(
                f"event {self._given} differs from those before; give (name, event) for all events, or for none"
            )
        if not has_name and self._scribe is not None:
            raise InputError("a ledger needs event names; give pairs (name, event), or a mapping of names to events")
        self._ordered = self._ordered or not has_name  # without names, only the order assigns results to events
        name, given = cast("tuple[str, Given]", event if has_name else ("", event))
        read = read_event(self._client.workload, name, given, digest=self._scribe is not None, watch=self._watch)
        future = self._submit(self._one(read))
        self._given += 1
        self._out[future] = None
        if not self._ordered:
            future.add_done_callback(self._finished.put)
        return has_name

    def _ready(self) -> bool:
        return next(iter(self._out)).done() if self._ordered else not self._finished.empty()

    def _take(self, show: ShowProgress) -> Found:
        """Return the next result, waiting if needed; raises errors that no single event causes."""
        future = next(iter(self._out)) if self._ordered else self._finished.get()
        try:
            found = future.result()
        except concurrent.futures.CancelledError:
            raise EndpointError("this endpoint was closed while it had events; create a new one") from None
        del self._out[future]
        self._count(found)
        show(self._tally())
        return found

    def _count(self, found: Found) -> None:
        """Count a result; raises EndpointError or ModelError when too many events fail in a row."""
        error, answer = found.error, found.answer
        self._ends[error is None] += 1
        if found.before:
            return
        if answer is not None:
            self._retries += answer.retries
            self._members[answer.member] += 1
            self._in_a_row.clear()
        elif isinstance(error, (EndpointError, UnknownModel)):
            # Each request has already used its full patience. `Faults` uses the time since the last answer; this is
            # not possible here, because the caller may pause between two results.
            self._in_a_row[EndpointError] += 1
            if self._in_a_row[EndpointError] >= max(2, self._way.in_flight):
                raise error
        elif isinstance(error, ModelError):
            self._in_a_row[ModelError] += 1
            if self._in_a_row[ModelError] >= BROKEN_MODEL:
                raise ModelError(f"{BROKEN_MODEL} events in a row failed in the model, the last one: {error}")

    def _tally(self) -> Tally:
        in_flight = min(len(self._out), self._way.in_flight)
        if self._scribe is not None:
            return self._scribe.tally(in_flight=in_flight, events=self._way.events)
        return Tally(
            events=max(self._way.events, self._given),
            done=self._ends[True],
            failed=self._ends[False],
            retries=self._retries,
            in_flight=in_flight,
            members=self._members,
        )

    # In the event loop

    async def _one(self, event: Event) -> Found:
        """Return the outcome of an event; a failure of inference is no exception."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await (self._ask(event) if self._scribe is None else self._once(event, self._scribe))
        finally:
            self._tasks.discard(task)

    async def _ask(self, event: Event) -> Found:
        if event.error is not None:
            return Found(name=event.name, error=event.error)
        try:
            async with self._free:
                return Found(name=event.name, answer=await self._client.ask(event.tensors))
        except (InputError, ModelError, EndpointError) as error:
            return Found(name=event.name, error=error)

    async def _once(self, event: Event, scribe: Scribe) -> Found:
        """Return the outcome from the ledger, or send a request and write its outcome to disk before returning it."""
        known = await self._write(lambda: scribe.known(event))
        if known is not None:
            return known
        if not self._begun:  # only now: without open events no endpoint is needed
            await self._begin(scribe)
        found = await self._ask(event)
        await self._write(lambda: scribe.note(event, found))
        return found

    async def _begin(self, scribe: Scribe) -> None:
        async with self._beginning:
            if not self._begun:
                served = await self._client.served()
                await self._write(lambda: scribe.begin(served))
                self._begun = True

    async def _write(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # The end

    def _close(self, stopped: str | None) -> None:
        """Drop requests in flight and close the ledger."""
        if sys.is_finalizing():  # the threads have ended; yielded results are committed
            return
        with deferred_signals():
            try:
                ending = self._submit(self._end(stopped))
            except EndpointError:  # the endpoint is already closed, with all its requests
                ending = self._thread.submit(self._sign_off, stopped)
            ending.add_done_callback(lambda _: _OPEN.discard(self))
            # The garbage collector may drop the iterator in any thread. Our own threads must not wait for themselves.
            if not threading.current_thread().name.startswith(_OURS):
                ending.result()

    async def _end(self, stopped: str | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._scribe is not None:
            await self._write(lambda: self._sign_off(stopped))

    def _sign_off(self, stopped: str | None) -> None:
        self._thread.shutdown(wait=False)
        if self._scribe is not None:
            self._scribe.close(stopped)
