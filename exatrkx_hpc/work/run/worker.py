"""One worker process: reads event names from stdin, writes result files, and answers each event on stdout.

Both directions are JSON, one object per line. The first line on stdin is the `Task`. Each further line is an event
`{"name", "path"}`, with `"rows"` if its file holds several events. An answer has the fields of a `Result`, or is
`{"name", "kind", "reason"}`, or, if a server had the event and did not answer well, `{"name", "cause", "member",
"reason"}`. `{"name", "retry"}` says that no server has taken the event yet, and why; its answer follows. If results go
into parts, each part on disk is also an answer, with the fields of a `Part`; it holds the oldest answered results that
are in no part yet. `{"write": true}` requests a part. The end of stdin stops the worker: it drops requests in flight
and leaves no partial file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, InputError, ModelError, OutputError
from exatrkx_hpc.base.readable import one_line
from exatrkx_hpc.work.events.source import EventFile, EventInput, Reader, Rows, UnreadableEvent
from exatrkx_hpc.work.inference.client import Answer, Client, Unanswered
from exatrkx_hpc.work.inference.retry import EventTooLarge, Poisoned, UnknownModel
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import EVENTS, Part, PartWriter
from exatrkx_hpc.work.results.write import write_result
from exatrkx_hpc.work.workloads.base import DIRECT, Tensors, Workload
from exatrkx_hpc.work.workloads.table import workload as find_workload

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import LabelFormat, Mode
    from exatrkx_hpc.work.inference.in_process import Direct

LOOKAHEAD: Final = 2
"""Events that a worker reads ahead while `in_flight` others wait for the endpoint."""

QUICK_READ: Final = 0.002
"""Seconds that reading an event may block the worker's event loop; a slower file system is read in a thread."""

KINDS: Final[dict[type[ExatrkxError], str]] = {
    InputError: "input",
    UnreadableEvent: "file",
    ModelError: "model",
    EndpointError: "endpoint",
    UnknownModel: "endpoint",
    EventTooLarge: "input",
    Poisoned: "poison",
    OutputError: "output",
}
"""The failure kind in the report for each error of an event."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings that a worker receives once: workload, endpoint, output folder, and limits, in seconds.

    In mode `direct` the worker runs the models of `repository` itself, and `server` only names the repository. `model`
    is the model that the user chose, if any; `models` are the models that the mode runs. `newline` is whether each CSV
    event ends with a newline.
    """

    server: str
    models: str
    folder: str
    in_flight: int
    request_timeout: float
    patience: float
    workload: str = "exatrkx"
    workloads: str = ""
    model: str = ""
    mode: Mode = "ensemble"
    repository: str = ""
    result_format: LabelFormat = "csv"
    part_events: int = EVENTS
    newline: bool = False
    identity: str = ""


class Asked(Protocol):
    """Turns an event into a result: a client of the endpoint, or the workload's function in this process."""

    async def ask(self, inputs: Tensors) -> Answer:
        """Return the outputs for the inputs of one event."""


class Worker:
    """Turns events into result files, `in_flight` requests at a time, and reports each on one line."""

    def __init__(self, task: Task, asked: Asked, answers: int, *, reader: Reader | None = None) -> None:
        """Write answers to the file descriptor `answers`; `reader` reads the events (default: a new Reader)."""
        self._workload = find_workload(task.workload, task.workloads)
        self._folder = Path(task.folder)
        self._asked = asked
        self._reader = reader or Reader(self._workload, newline=task.newline)
        self._quick = True
        self._answers = answers
        self._free = asyncio.Semaphore(task.in_flight)
        self._parts: PartWriter | None = None
        if task.result_format == "parquet":
            say: Callable[[Part], None] = lambda part: self._answer(**vars(part))  # noqa: E731
            self._parts = PartWriter(self._folder, self._workload, events=task.part_events, say=say)

    async def do(self, event: EventFile) -> None:
        """Process one event and answer; a failure is an answer, not an exception."""
        try:
            content = await self._read(event)
            async with self._free:
                answer = await self._ask(event.name, content.tensors)
            if self._parts is None:
                self._answer(**vars(self._write(event.name, content, answer)))
            else:
                self._answer(**vars(result_of(self._workload, event.name, content, answer)))
                self._parts.add(event.name, answer.outputs)
                await self._parts.write_if_due()
        except Unanswered as one:
            reason = one_line(str(one.error))
            self._answer(name=event.name, cause=one.cause.value, member=one.member, reason=reason)
        except (InputError, ModelError, EndpointError, OutputError) as error:
            self._answer(name=event.name, kind=KINDS[type(error)], reason=one_line(str(error)))

    async def _ask(self, name: str, inputs: Tensors) -> Answer:
        """Deliver an event once; the coordinator decides whether it is delivered again."""
        if not isinstance(self._asked, Client):
            return await self._asked.ask(inputs)
        return await self._asked.deliver(inputs, retried=lambda why: self._answer(name=name, retry=one_line(why)))

    async def _read(self, event: EventFile) -> EventInput:
        """Read an event: directly if the last read was quick, because a thread costs more; else in a thread."""
        quick, begin = self._quick, time.monotonic()
        content = self._reader.read(event) if quick else await asyncio.to_thread(self._reader.read, event)
        self._quick = time.monotonic() - begin < QUICK_READ
        return content

    async def write_part(self, *, if_due: bool = False) -> None:
        """Write the collected results as a part, if results go into parts; a write error is an answer."""
        try:
            if self._parts is not None:
                await (self._parts.write_if_due() if if_due else self._parts.write())
        except OutputError as error:
            self._answer(name="", kind=KINDS[type(error)], reason=one_line(str(error)))

    def _write(self, name: str, event: EventInput, answer: Answer) -> Result:
        """Write the result file; no await before the answer, so that no file exists without its answer."""
        path = self._folder / f"{name}{self._workload.suffix}"
        remedy = "check permissions and free space, or choose another folder with -o"
        written = write_result(self._workload, path, answer.outputs, remedy=remedy)
        return result_of(self._workload, name, event, answer, written)

    def _answer(self, **fields: object) -> None:
        data = (json.dumps(fields) + "\n").encode()
        while data:  # a pipe may accept only some of it
            data = data[os.write(self._answers, data) :]


def result_of(
    workload: Workload, name: str, event: EventInput, answer: Answer, written: tuple[int | None, str] = (None, "")
) -> Result:
    """Return the ledger entry of an event; `written` is size and SHA-256 of its result file, if it has one."""
    size, sha256 = written
    return Result(
        name=name,
        items=workload.items(event.tensors),
        seconds=answer.seconds,
        retries=answer.retries,
        size=event.size,
        mtime_ns=event.mtime_ns,
        sha256=event.sha256,
        result_size=size,
        result_sha256=sha256,
        member=answer.member,
        version=answer.version,
        counts=workload.counts(answer.outputs),
        stages=answer.stages,
    )


async def work(answers: int) -> None:
    """Process orders from stdin until its end; write answers to the file descriptor `answers`."""
    orders = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    try:
        first = await orders.readline()
        if first:
            await _serve(Task(**json.loads(first)), orders, answers)
    finally:
        transport.close()


async def _serve(task: Task, orders: asyncio.StreamReader, answers: int) -> None:
    events: asyncio.Queue[bytes] = asyncio.Queue()
    async with _asked(task) as asked:
        worker = Worker(task, asked, answers)
        lanes = [asyncio.create_task(_lane(worker, events)) for _ in range(task.in_flight + LOOKAHEAD)]
        lanes.append(asyncio.create_task(_watch(worker)))
        reader = asyncio.create_task(_take(orders, events))
        # The reader ends with stdin. A lane ends only because of a bug; then the worker ends with a traceback.
        ended, _ = await asyncio.wait({reader, *lanes}, return_when=asyncio.FIRST_COMPLETED)
        for one in (reader, *lanes):
            one.cancel()
        await asyncio.gather(reader, *lanes, return_exceptions=True)
        await worker.write_part()
    for one in ended:
        one.result()


def _asked(task: Task) -> Client | Direct:
    workload = find_workload(task.workload, task.workloads)
    if task.mode == DIRECT:
        from exatrkx_hpc.work.inference.in_process import Direct

        return Direct(workload, Path(task.repository))
    return Client(
        task.server,
        workload=workload,
        model=task.model,
        mode=task.mode,
        request_timeout=task.request_timeout,
        patience=task.patience,
        identity=task.identity,
    )


async def _take(orders: asyncio.StreamReader, events: asyncio.Queue[bytes]) -> None:
    while line := await orders.readline():
        events.put_nowait(line)


async def _lane(worker: Worker, events: asyncio.Queue[bytes]) -> None:
    while True:
        order = json.loads(await events.get())
        await (worker.do(_event(order)) if "name" in order else worker.write_part())


async def _watch(worker: Worker) -> None:
    """Write a part when it is due, so that no result waits too long."""
    while True:
        await asyncio.sleep(1.0)
        await worker.write_part(if_due=True)


def _event(fields: dict[str, Any]) -> EventFile:
    rows = Rows(**fields["rows"]) if "rows" in fields else None
    return EventFile(name=fields["name"], path=Path(fields["path"]), rows=rows)


def main() -> None:
    """Run a worker on stdin and stdout; exits with status 1, without a traceback, when its coordinator is gone."""
    # Slurm signals every process of a step, and a terminal that closes every process in it. The coordinator handles
    # the signal and closes stdin.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Only answers may reach the coordinator's pipe. Any other output goes to stderr.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        asyncio.run(work(answers))
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
