"""A worker alone: where it reads its events."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time

import numpy as np
import pytest
from runs import make_events

from exatrkx_hpc.work.events.source import EventFile, EventInput, Reader, find_events
from exatrkx_hpc.work.inference.client import Answer
from exatrkx_hpc.work.run.worker import QUICK_READ, Task, Worker
from exatrkx_hpc.work.workloads.base import Tensors


class Instant:
    """Answers at once."""

    async def ask(self, inputs: Tensors) -> Answer:
        labels = np.zeros(len(inputs["hits"]), dtype=np.int64)
        return Answer(outputs={"labels": labels}, seconds=0.0, retries=0)


class OnAFileSystem(Reader):
    """Reads as slowly as a loaded file system does, and notes in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.pause = 0.0
        self.threads: list[threading.Thread] = []

    def read(self, event: EventFile) -> EventInput:
        self.threads.append(threading.current_thread())
        time.sleep(self.pause)
        return super().read(event)


@pytest.fixture
def answers():
    reading, writing = os.pipe()
    with open(reading, "rb") as lines:
        yield lines, writing
    os.close(writing)


def test_slow_reads_go_to_a_thread_and_quick_ones_come_back(tmp_path, answers):
    events = find_events(make_events(tmp_path / "events", [3] * 6))
    (tmp_path / "labels").mkdir()
    lines, writing = answers
    reader = OnAFileSystem()
    task = Task(
        server="a:1", models="exatrkx", folder=str(tmp_path / "labels"), in_flight=1, request_timeout=1.0, patience=1.0
    )

    async def run() -> None:
        worker = Worker(task, Instant(), writing, reader=reader)
        reader.pause = 3 * QUICK_READ
        for event in events[:3]:
            await worker.do(event)
        reader.pause = 0.0
        for _ in range(50):  # on a busy machine a read may not be quick by chance
            await worker.do(events[3])
            if reader.threads[-1] is threading.main_thread():
                return

    asyncio.run(run())
    own = [thread is threading.main_thread() for thread in reader.threads]
    assert own[:4] == [True, False, False, False], "one slow read is enough; that it is quick again is seen there"
    assert own[-1], "quick reads are made in the worker's own thread again"
    assert [json.loads(lines.readline())["name"] for _ in range(4)] == ["evt_0", "evt_1", "evt_2", "evt_3"]
