"""One worker process: events in by name on stdin, label files out, an answer for each on stdout.

Both directions are JSON, one object a line. The first line is the `Task`; each line after it is an event
`{"name", "path"}`, with `"rows"` where its file holds more; each answer has the fields of a `Result`, or is
`{"name", "kind", "reason"}`. Where labels go into parts, a part that is on disk is an answer, too, with the fields of
a `Part`: it holds as many results as it says, the first ones that were in none; `{"write": true}` asks for one.
The end of stdin is the order to stop: what is in flight is dropped, what is written stays whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from numpy.typing import ArrayLike

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, InputError, ModelError, OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.events.source import EventFile, EventInput, Reader, Rows, UnreadableEvent, labels_text
from exatrkx_hpc.work.inference.client import Answer, Client
from exatrkx_hpc.work.inference.retry import UnknownModel, one_line
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import EVENTS, Part, PartWriter
from exatrkx_hpc.work.run.event_figures import by_stage, count_tracks

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
    """What a worker is told once: the endpoint, where labels go, and how hard to try.

    In mode `direct` the worker runs the pipeline of `repository` itself, and `server` and `model` only name it.
    """

    server: str
    model: str
    labels: str
    in_flight: int
    request_timeout: float
    patience: float
    mode: Mode = "ensemble"
    repository: str = ""
    label_format: LabelFormat = "csv"
    part_events: int = EVENTS


class Tracker(Protocol):
    """What turns hits into labels: a client of the endpoint, or the pipeline in this process."""

    async def ask(self, hits: ArrayLike) -> Answer:
        """Return the labels of hits `[N, 3]`."""


class Worker:
    """Turns events into label files, `in_flight` requests at a time, and says so line by line."""

    def __init__(self, task: Task, tracker: Tracker, answers: int, *, reader: Reader | None = None) -> None:
        """Write answers to the file descriptor `answers`; `reader` reads the events, a new one by default."""
        self._labels = Path(task.labels)
        self._tracker = tracker
        self._reader = reader or Reader()
        self._quick = True
        self._answers = answers
        self._free = asyncio.Semaphore(task.in_flight)
        self._parts: PartWriter | None = None
        if task.label_format == "parquet":
            say: Callable[[Part], None] = lambda part: self._answer(**vars(part))  # noqa: E731
            self._parts = PartWriter(self._labels, events=task.part_events, say=say)

    async def do(self, event: EventFile) -> None:
        """Do one event and answer; an event's own failure is an answer, not an exception."""
        try:
            content = await self._read(event)
            async with self._free:
                answer = await self._tracker.ask(content.hits)
            if self._parts is None:
                self._answer(**vars(self._write(event.name, content, answer)))
            else:
                self._answer(**vars(_result(event.name, content, answer)))
                self._parts.add(event.name, answer.labels)
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
        """Write the label file; no await until the answer is out, so a file and its answer go together."""
        path = self._labels / f"{name}.csv"
        data = labels_text(answer.labels).encode()
        try:
            write_whole(path, data)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; make room there, or choose another folder with -o"
            ) from error
        return _result(name, event, answer, labels_size=len(data), labels_sha256=hashlib.sha256(data).hexdigest())

    def _answer(self, **fields: object) -> None:
        data = (json.dumps(fields) + "\n").encode()
        while data:  # a pipe may take a part
            data = data[os.write(self._answers, data) :]


def _result(
    name: str, event: EventInput, answer: Answer, *, labels_size: int | None = None, labels_sha256: str = ""
) -> Result:
    return Result(
        name=name,
        hits=len(event.hits),
        seconds=answer.seconds,
        retries=answer.retries,
        size=event.size,
        mtime_ns=event.mtime_ns,
        sha256=event.sha256,
        labels_size=labels_size,
        labels_sha256=labels_sha256,
        member=answer.member,
        version=answer.version,
        tracks=count_tracks(answer.labels),
        stages=by_stage(answer.models),
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
    async with _tracker(task) as tracker:
        worker = Worker(task, tracker, answers)
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


def _tracker(task: Task) -> Client | Direct:
    if task.mode == "direct":
        from exatrkx_hpc.work.inference.in_process import Direct

        return Direct(Path(task.repository))
    return Client(
        task.server,
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
