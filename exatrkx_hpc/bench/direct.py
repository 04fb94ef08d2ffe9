"""The pipeline without a server, in as many processes as wanted: what the service is compared with.

As a program, `python -m exatrkx_hpc.bench.direct REPOSITORY EVENTS` says `ready`, then works for each line of stdin
that is a number of seconds, and says how long each event took, as JSON. It ends with stdin.
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
#: A line with the seconds of every event is longer than asyncio's default takes.
_READY: Final = b"ready\n"


@contextlib.contextmanager
def running(repository: Path, events: Path, processes: int) -> Iterator[Callable[[float], ClientFigures]]:
    """Start the processes; the function lets them work for so many seconds and returns what they did together.

    Raises EndpointError when one of them cannot start or ends; what it said is on stderr.
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
    told = [json.loads(line or b"{}") for line in await _lines(processes, seconds + _MARGIN)]
    if not all(told):
        raise EndpointError("a process of the pipeline ended; what it said stands above")
    times = 1000.0 * np.concatenate([np.asarray(one["times"]) for one in told])
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    return ClientFigures(
        # Each by its own time: one that began its last event late does not make the others slower.
        per_second=sum(len(one["times"]) / one["seconds"] for one in told),
        mean_ms=float(times.mean()),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


async def _lines(processes: list[asyncio.subprocess.Process], deadline: float) -> list[bytes]:
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
    """Be one of the processes."""
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
