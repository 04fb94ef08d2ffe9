"""NVIDIA's perf_analyzer: find it, ask it for one measurement, and read what it wrote.

What its CSV says of the *server* is not used: it asks one server for its statistics, and of an ensemble (2.60) it
counts the queues of the members as network. The counters of all servers know better, see `latency_split`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.measure.metrics import ModelTimes

PROGRAM: Final = "perf_analyzer"
#: Where `install` puts it, below the folder that it is given.
LAUNCHER: Final = "bin/perf_analyzer"
#: perf_analyzer itself calls three windows one measurement.
WINDOWS: Final = 3
REMEDY: Final = "install it with 'exatrkx-hpc setup --bench', or set bench.perf_analyzer in farm.toml"
_MARGIN: Final = 120.0
_WARM_UPS: Final = 3
#: The binary in the wheel calls itself 0.0.0; its commit tells which it is.
_WHEELS: Final = {"3a49a23": "2.60.0"}
#: What a number in its CSV looks like; float() would also take nan, infinity, 1_0 and digits of other scripts.
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_NEEDED: Final = ("Inferences/Second", "Avg latency", "p50 latency", "p95 latency", "p99 latency")


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzer:
    """A perf_analyzer that runs here: the words that start it, and its version, `?` when it does not say."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What perf_analyzer is to do: ask `model` at `server` with the events of `data`, `concurrency` at a time.

    It measures for `window` seconds or somewhat longer. `calls` is `sync`, `async`, or `default`, its own choice.
    """

    server: str
    model: str
    data: Path
    concurrency: int
    window: float
    calls: str = "default"


@dataclass(frozen=True, kw_only=True)
class ClientFigures:
    """What perf_analyzer saw: inferences per second, and latencies in milliseconds, the mean and percentiles."""

    per_second: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the mean latency of a request goes, in milliseconds.

    Queue, input, compute and output are the servers'; network is the rest: client, balancer, wire, and of an
    ensemble the passing on from model to model.
    """

    queue_ms: float
    input_ms: float
    compute_ms: float
    output_ms: float
    network_ms: float


def find(folder: Path, command: Sequence[str] = ()) -> PerfAnalyzer:
    """Return the perf_analyzer that `command` starts, else that of PATH, else the one that was installed in `folder`.

    Raises MissingComponent when there is none, or when it does not run.
    """
    words = tuple(command)
    if not words:
        installed = folder / LAUNCHER
        try:
            words = (find_program(PROGRAM, remedy=REMEDY),)
        except MissingComponent:
            if not os.access(installed, os.X_OK):
                raise
            words = (str(installed),)
    return PerfAnalyzer(command=words, version=version_of(words))


def version_of(words: Sequence[str]) -> str:
    """Return the version that a perf_analyzer says it has; raises MissingComponent when it does not run."""
    done = run([*words, "--version"], timeout=60)
    said = re.search(r"Version (\S+)(?: \(commit (\w+)\))?", done.stdout + done.stderr)
    if said is None:  # its exit status says nothing
        raise MissingComponent(f"{' '.join(words)} does not run here ({done.complaint}); {REMEDY}")
    return _WHEELS.get(said[2], f"{said[1]} ({said[2]})" if said[2] else said[1])


def arguments(load: Load, report: Path) -> list[str]:
    """Return the words after the program's own that measure `load` and write the CSV `report`."""
    return [
        *("-m", load.model, "-u", load.server, "-i", "grpc", "--input-data", str(load.data)),
        *("--concurrency-range", f"{load.concurrency}:{load.concurrency}"),
        *("--measurement-interval", str(max(1, round(1000 * load.window / WINDOWS)))),
        # Whether a figure is steady is told from whole repetitions, so that every window it takes counts.
        *("--max-trials", str(WINDOWS), "--stability-percentage", "1000000"),
        *((f"--{load.calls}",) if load.calls != "default" else ()),
        *("--verbose-csv", "-f", str(report)),
    ]


def measure(analyzer: PerfAnalyzer, load: Load, report: Path) -> ClientFigures:
    """Let perf_analyzer measure `load`; its CSV is `report` afterwards.

    Raises EndpointError when it fails or writes no figures; its last words are part of the message.
    """
    report.unlink(missing_ok=True)
    done = run([*analyzer.command, *arguments(load, report)], timeout=10 * load.window + _MARGIN)
    # The program that the wheel puts on PATH (2.60) has exit status 0 whatever happens.
    if done.returncode or not report.is_file():
        raise EndpointError(
            f"perf_analyzer measured nothing at {load.server} at concurrency {load.concurrency} "
            f"(exit {done.returncode}): {_complaint(done)}; check that 'exatrkx-hpc run-clients' works there"
        )
    return parse_csv(report.read_text(errors="replace"), where=str(report))


def warm_up(analyzer: PerfAnalyzer, load: Load, aside: Path) -> ClientFigures:
    """Do `load` before what counts, and return its figures; `aside` is removed again.

    It is tried up to three times: for a moment after a change of the members a balancer may refuse a new connection,
    which perf_analyzer does not try again. Raises EndpointError as `measure` does.
    """
    try:
        for _ in range(_WARM_UPS - 1):
            with contextlib.suppress(EndpointError):
                return measure(analyzer, load, aside)
            time.sleep(1.0)
        return measure(analyzer, load, aside)
    finally:
        aside.unlink(missing_ok=True)


def parse_csv(text: str, *, where: str) -> ClientFigures:
    """Return the figures of the one row of a CSV that perf_analyzer wrote with --verbose-csv.

    Raises EndpointError when it has another form; `where` says what it is.
    """
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text)) if row]
        (row,) = rows
        values = dict(zip(header, row, strict=True))
    except (ValueError, csv.Error) as error:
        raise _other_form(where, "expected a header and one row with as many cells") from error
    if missing := [name for name in _NEEDED if header.count(name) != 1]:
        raise _other_form(where, f"expected the column {missing[0]} exactly once")
    per_second, *micros = (_figure(values[name], name, where) for name in _NEEDED)
    mean, p50, p95, p99 = (one / 1000.0 for one in micros)
    return ClientFigures(per_second=per_second, mean_ms=mean, p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _figure(text: str, name: str, where: str) -> float:
    """Return what a cell says; it is a finite number above 0, or nothing was measured."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0.0 < value < math.inf:
        raise _other_form(where, f"{name} is {text[:40]!r}, not a number above 0")
    return value


def _other_form(where: str, why: str) -> EndpointError:
    return EndpointError(f"{where} is not what perf_analyzer 2.60 writes: {why}; remove it and measure again")


def latency_split(model: str, mean_ms: float, times: Iterable[ModelTimes]) -> Split:
    """Return where the mean latency `mean_ms` of `model` goes, by what the servers counted meanwhile.

    `times` are those of every model. An ensemble has no times of its own: those of the others are its members', so
    nobody else may ask them meanwhile. All server parts are 0 when the servers counted nothing.
    """
    counted = {one.model: one for one in times}
    asked = counted.get(model)
    requests = asked.successes if asked else 0
    members = [one for one in counted.values() if one.model != model and one.successes]
    parts = members or ([asked] if asked else [])

    def per_request(value: str) -> float:
        return sum(getattr(one, value) * one.successes for one in parts) / requests if requests else 0.0

    queue, entry, compute, output = (per_request(name) for name in ("queue_ms", "input_ms", "infer_ms", "output_ms"))
    counted_ms = queue + entry + compute + output
    # The servers count what was in flight at both ends, too: so their mean may be above the client's.
    scale = min(1.0, mean_ms / counted_ms) if counted_ms else 1.0
    return Split(
        queue_ms=scale * queue,
        input_ms=scale * entry,
        compute_ms=scale * compute,
        output_ms=scale * output,
        network_ms=max(0.0, mean_ms - scale * counted_ms),
    )


def _complaint(done: Completed) -> str:
    """Return what it said last, without what it says every time, on one line."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
    errors = [line for line in lines if re.match(r"error|failed", line, re.IGNORECASE)]
    return ", ".join(errors[-2:]) if errors else done.complaint
