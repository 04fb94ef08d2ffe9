"""One worker process: events in by name on stdin, result files out, an answer for each on stdout.

Both directions are JSON, one object a line. The first line is the `Task`; each line after it is an event
`{"name", "path"}`, with `"rows"` where its file holds more; each answer has the fields of a `Result`, or is
`{"name", "kind", "reason"}`. Where results go into parts, a part that is on disk is an answer, too, with the fields of
a `Part`: it holds as many results as it says, the first ones that were in none; `{"write": true}` asks for one.
The end of stdin is the order to stop: what is in flight is dropped, what is written stays whole.
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
from exatrkx_hpc.work.inference.client import Answer, Client
from exatrkx_hpc.work.inference.retry import UnknownModel
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import EVENTS, Part, PartWriter
from exatrkx_hpc.work.results.write import write_result
from exatrkx_hpc.work.workloads.base import DIRECT, Tensors, Workload
from exatrkx_hpc.work.workloads.table import workload as find_workload

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import LabelFormat, Mode
    from exatrkx_hpc.work.inference.in_process import Direct

LOOKAHEAD: Final = 2
"""Events that a worker has read, or reads, while `in_flight` others wait for the endpoint."""

QUICK_READ: Final = 0.002
"""Seconds that reading an event may keep the others of a worker waiting; a loaded file system takes longer."""

KINDS: Final[dict[type[ExatrkxError], str]] = {
    InputError: "input",
    UnreadableEvent: "file",
    ModelError: "model",
    EndpointError: "endpoint",
    UnknownModel: "endpoint",
    OutputError: "output",
}
"""The word of the report for each error that an event can meet."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is told once: the kind of events, the endpoint, where results go, and how hard to try.

    In mode `direct` the worker does the work with `repository` itself, and `server` only names it. `model` is the one
    that was asked for, if any, `models` are those that the mode runs.
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


class Asked(Protocol):
    """What turns an event into a result: a client of the endpoint, or the workload's own function in this process."""

    async def ask(self, inputs: Tensors) -> Answer:
        """Return the outputs for the inputs of an event."""


class Worker:
    """Turns events into result files, `in_flight` requests at a time, and says so line by line."""

    def __init__(self, task: Task, asked: Asked, answers: int, *, reader: Reader | None = None) -> None:
        """Write answers to the file descriptor `answers`; `reader` reads the events, a new one by default."""
        self._workload = find_workload(task.workload, task.workloads)
        self._folder = Path(task.folder)
        self._asked = asked
        self._reader = reader or Reader(self._workload)
        self._quick = True
        self._answers = answers
        self._free = asyncio.Semaphore(task.in_flight)
        self._parts: PartWriter | None = None
        if task.result_format == "parquet":
            say: Callable[[Part], None] = lambda part: self._answer(**vars(part))  # noqa: E731
            self._parts = PartWriter(self._folder, self._workload, events=task.part_events, say=say)

    async def do(self, event: EventFile) -> None:
        """Do one event and answer; an event's own failure is an answer, not an exception."""
        try:
            content = await self._read(event)
            async with self._free:
                answer = await self._asked.ask(content.tensors)
            if self._parts is None:
                self._answer(**vars(self._write(event.name, content, answer)))
            else:
                self._answer(**vars(result_of(self._workload, event.name, content, answer)))
                self._parts.add(event.name, answer.outputs)
                await self._parts.write_if_due()
        except (InputError, ModelError, EndpointError, OutputError) as error:
            self._answer(name=event.name, kind=KINDS[type(error)], reason=one_line(str(error)))

    async def _read(self, event: EventFile) -> EventInput:
        """Read an event: here while that is quick, for the way to a thread and back costs more; else in a thread."""
        quick, begin = self._quick, time.monotonic()
        content = self._reader.read(event) if quick else await asyncio.to_thread(self._reader.read, event)
        self._quick = time.monotonic() - begin < QUICK_READ
        return content

    async def write_part(self, *, if_due: bool = False) -> None:
        """Write what was collected, if it is collected at all; that it cannot be written is an answer."""
        try:
            if self._parts is not None:
                await (self._parts.write_if_due() if if_due else self._parts.write())
        except OutputError as error:
            self._answer(name="", kind=KINDS[type(error)], reason=one_line(str(error)))

    def _write(self, name: str, event: EventInput, answer: Answer) -> Result:
        """Write the result file; no await until the answer is out, so a file and its answer go together."""
        path = self._folder / f"{name}{self._workload.suffix}"
        remedy = "check permissions and free space, or choose another folder with -o"
        written = write_result(self._workload, path, answer.outputs, remedy=remedy)
        return result_of(self._workload, name, event, answer, written)

    def _answer(self, **fields: object) -> None:
        data = (json.dumps(fields) + "\n").encode()
        while data:  # a pipe may take a part
            data = data[os.write(self._answers, data) :]


def result_of(
    workload: Workload, name: str, event: EventInput, answer: Answer, written: tuple[int | None, str] = (None, "")
) -> Result:
    """Return what a ledger is to say of an event; `written` are size and digest of the result's file, if it has one."""
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
    """Serve stdin until its end, answering on the file descriptor `answers`."""
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
        # The reader ends with stdin. A lane ends only by a fault of ours: then the worker ends loudly.
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
    )


async def _take(orders: asyncio.StreamReader, events: asyncio.Queue[bytes]) -> None:
    while line := await orders.readline():
        events.put_nowait(line)


async def _lane(worker: Worker, events: asyncio.Queue[bytes]) -> None:
    while True:
        order = json.loads(await events.get())
        await (worker.do(_event(order)) if "name" in order else worker.write_part())


async def _watch(worker: Worker) -> None:
    """See to it that no result waits for its part too long."""
    while True:
        await asyncio.sleep(1.0)
        await worker.write_part(if_due=True)


def _event(fields: dict[str, Any]) -> EventFile:
    rows = Rows(**fields["rows"]) if "rows" in fields else None
    return EventFile(name=fields["name"], path=Path(fields["path"]), rows=rows)


def main() -> None:
    """Run a worker on stdin and stdout; ends quietly when its coordinator is gone."""
    # Slurm signals every process of a step. The coordinator decides what a signal means, and closes stdin.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Only answers may reach the coordinator's pipe: whatever else prints goes to stderr.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        asyncio.run(work(answers))
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
