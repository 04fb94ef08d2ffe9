"""The pipeline without a server, in several processes: the baseline for the service.

As a program, `python -m exatrkx_hpc.bench.direct REPOSITORY EVENTS` prints `ready`. For each line of stdin, a number
of seconds, it processes events for that time and prints the seconds of each event as JSON. It ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.process import spawn_piped
from exatrkx_hpc.measure.perf_analyzer import ClientFigures
from exatrkx_hpc.models.pipeline import load_tracker
from exatrkx_hpc.work.events.convert import events_of
from exatrkx_hpc.work.events.source import Reader
from exatrkx_hpc.work.run.worker_process import worker_environment

_START_DEADLINE: Final = 300.0
_MARGIN: Final = 120.0
_READY: Final = b"ready\n"


@contextlib.contextmanager
def running(repository: Path, events: Path, processes: int) -> Iterator[Callable[[float], ClientFigures]]:
    """Start the processes and yield a function that lets them work for some seconds and returns their total figures.

    Raises EndpointError when a process does not become ready or ends, with its output on stderr; OSError when it
    cannot be started.
    """
    loop = asyncio.new_event_loop()
    started: list[asyncio.subprocess.Process] = []
    try:
        argv = [sys.executable, "-m", "exatrkx_hpc.bench.direct", str(repository), str(events)]
        for _ in range(processes):
            started.append(loop.run_until_complete(spawn_piped(argv, env=worker_environment())))
        for said in loop.run_until_complete(_lines(started, _START_DEADLINE)):
            if said != _READY:
                raise EndpointError(f"the pipeline of {repository} did not start; what it said stands above")
        yield lambda seconds: loop.run_until_complete(_work(started, seconds))
    finally:
        loop.run_until_complete(_end(started))
        loop.close()


async def _work(processes: list[asyncio.subprocess.Process], seconds: float) -> ClientFigures:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{seconds}\n".encode())
    lines = await _lines(processes, seconds + _MARGIN)
    if not all(line.endswith(b"\n") for line in lines):
        raise EndpointError("a process of the pipeline ended; what it said stands above")
    told = [json.loads(line) for line in lines]
    times = 1000.0 * np.concatenate([np.asarray(one["times"]) for one in told])
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    return ClientFigures(
        # Each process by its own time, so that a long last event in one does not lower the rate of the others.
        per_second=sum(len(one["times"]) / one["seconds"] for one in told),
        mean_ms=float(times.mean()),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


async def _lines(processes: list[asyncio.subprocess.Process], deadline: float) -> list[bytes]:
    # Not readline(): a line with the seconds of every event may exceed the limit of asyncio.
    async def line(process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        text = b""
        while not text.endswith(b"\n") and (piece := await process.stdout.read(1 << 16)):
            text += piece
        return text

    try:
        return await asyncio.wait_for(asyncio.gather(*map(line, processes)), deadline)
    except asyncio.TimeoutError as error:
        raise EndpointError(f"a process of the pipeline said nothing for {deadline:g} s") from error


async def _end(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    # The transports of the pipes close in the loop's next rounds.
    await asyncio.sleep(0)


def main() -> None:
    """Run one of the processes."""
    repository, folder = (Path(word) for word in sys.argv[1:3])
    reader = Reader()
    events = [reader.read(event).tensors["hits"] for event in events_of(folder)]
    find = load_tracker(repository)
    for hits in events:
        find(hits)
    print("ready", flush=True)
    turns = itertools.cycle(events)
    for line in sys.stdin:
        times: list[float] = []
        begin = time.monotonic()
        while not times or time.monotonic() - begin < float(line):
            before = time.monotonic()
            find(next(turns))
            times.append(time.monotonic() - before)
        print(json.dumps({"seconds": time.monotonic() - begin, "times": times}), flush=True)


if __name__ == "__main__":
    main()
