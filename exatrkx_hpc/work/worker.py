"""One worker process: events in by name on stdin, label files out, an answer for each on stdout.

Both directions are JSON, one object a line. The first line is the `Task`; each line after it is an event
`{"name", "path"}`; each answer is `{"name", "hits", "seconds", "retries"}` or `{"name", "kind", "reason"}`.
The end of stdin is the order to stop: what is in flight is dropped, what is written stays whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.errors import EndpointError, ExatrkxError, InputError, ModelError, OutputError
from exatrkx_hpc.files import write_whole
from exatrkx_hpc.work.client import Client
from exatrkx_hpc.work.events import labels_text, read_hits
from exatrkx_hpc.work.retry import one_line

LOOKAHEAD: Final = 2
"""Events that a worker has read, or reads, while `in_flight` others wait for the endpoint."""

KINDS: Final[dict[type[ExatrkxError], str]] = {
    InputError: "input",
    ModelError: "model",
    EndpointError: "endpoint",
    OutputError: "output",
}
"""The word of the report for each error that an event can meet."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is told once: the endpoint, where labels go, and how hard to try."""

    server: str
    model: str
    labels: str
    in_flight: int
    request_timeout: float
    patience: float


class Worker:
    """Turns events into label files, `in_flight` requests at a time, and says so line by line."""

    def __init__(self, task: Task, client: Client, answers: int) -> None:
        """Write answers to the file descriptor `answers`."""
        self._labels = Path(task.labels)
        self._client = client
        self._answers = answers
        self._free = asyncio.Semaphore(task.in_flight)

    async def do(self, name: str, path: Path) -> None:
        """Do one event and answer; an event's own failure is an answer, not an exception."""
        try:
            hits = await asyncio.to_thread(read_hits, path)
            async with self._free:
                answer = await self._client.ask(hits)
            self._write(name, labels_text(answer.labels))
        except (InputError, ModelError, EndpointError, OutputError) as error:
            self._answer(name=name, kind=KINDS[type(error)], reason=one_line(str(error)))
        else:
            self._answer(name=name, hits=len(hits), seconds=answer.seconds, retries=answer.retries)

    def _write(self, name: str, text: str) -> None:
        """Write the label file; no await until the answer is out, so a file and its answer go together."""
        path = self._labels / f"{name}.csv"
        try:
            write_whole(path, text)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; make room there, or choose another folder with -o"
            ) from error

    def _answer(self, **fields: object) -> None:
        data = (json.dumps(fields) + "\n").encode()
        while data:  # a pipe may take a part
            data = data[os.write(self._answers, data) :]


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
    async with Client(
        task.server, model=task.model, request_timeout=task.request_timeout, patience=task.patience
    ) as client:
        worker = Worker(task, client, answers)
        lanes = [asyncio.create_task(_lane(worker, events)) for _ in range(task.in_flight + LOOKAHEAD)]
        reader = asyncio.create_task(_take(orders, events))
        # The reader ends with stdin. A lane ends only by a fault of ours: then the worker ends loudly.
        ended, _ = await asyncio.wait({reader, *lanes}, return_when=asyncio.FIRST_COMPLETED)
        for one in (reader, *lanes):
            one.cancel()
        await asyncio.gather(reader, *lanes, return_exceptions=True)
    for one in ended:
        one.result()


async def _take(orders: asyncio.StreamReader, events: asyncio.Queue[bytes]) -> None:
    while line := await orders.readline():
        events.put_nowait(line)


async def _lane(worker: Worker, events: asyncio.Queue[bytes]) -> None:
    while True:
        event = json.loads(await events.get())
        await worker.do(event["name"], Path(event["path"]))


def main() -> None:
    """Run a worker on stdin and stdout; ends quietly when its coordinator is gone."""
    # Slurm signals every process of a step. The coordinator decides what a signal means, and closes stdin.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only answers may reach the coordinator's pipe: whatever else prints goes to stderr.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        asyncio.run(work(answers))
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
