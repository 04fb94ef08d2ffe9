"""NVIDIA's perf_analyzer: find it, run one measurement, and read its results.

The *server* columns of its CSV are not used: it reads the statistics of one server only, and for an ensemble (2.60) it
counts the queues of the members as network. The counters of all servers are more accurate, see `latency_split`.
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

from exatrkx_hpc.base.credentials import NO_FILES, CredentialFiles
from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.base.process import Completed, find_program, run
from exatrkx_hpc.measure.metrics import ModelTimes

PROGRAM: Final = "perf_analyzer"
#: Path of the installed launcher, relative to the folder given to `install`.
LAUNCHER: Final = "bin/perf_analyzer"
#: perf_analyzer itself defines three windows as one measurement.
WINDOWS: Final = 3
REMEDY: Final = "install it with 'exatrkx-hpc setup --bench', or set bench.perf_analyzer in farm.toml"
_MARGIN: Final = 120.0
_WARM_UPS: Final = 3
#: The binary in the wheel reports version 0.0.0; its commit identifies the release.
_WHEELS: Final = {"3a49a23": "2.60.0"}
#: A number in its CSV; float() would also accept nan, infinity, 1_0 and digits of other scripts.
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_NEEDED: Final = ("Inferences/Second", "Avg latency", "p50 latency", "p95 latency", "p99 latency")


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzer:
    """A perf_analyzer that runs on this machine: the words of its command, and its version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """One measurement: send the events of `data` to `model` at `server`, `concurrency` requests at a time.

    It takes `window` seconds or somewhat longer. `calls` is `sync`, `async`, or `default`, perf_analyzer's own choice.
    `files` has the credentials for the server.
    """

    server: str
    model: str
    data: Path
    concurrency: int
    window: float
    calls: str = "default"
    files: CredentialFiles = NO_FILES


@dataclass(frozen=True, kw_only=True)
class ClientFigures:
    """Figures of perf_analyzer: inferences per second; mean and percentiles of the latency in milliseconds."""

    per_second: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """The parts of the mean latency of a request, in milliseconds.

    Queue, input, compute and output are from the servers. Network is the rest: client, balancer, network, and for an
    ensemble the transfer between its models.
    """

    queue_ms: float
    input_ms: float
    compute_ms: float
    output_ms: float
    network_ms: float


def find(folder: Path, command: Sequence[str] = ()) -> PerfAnalyzer:
    """Return the perf_analyzer of `command`, else the one on PATH, else the one installed in `folder`.

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
    """Return the version that a perf_analyzer reports; raises MissingComponent when it does not run."""
    done = run([*words, "--version"], timeout=60)
    said = re.search(r"Version (\S+)(?: \(commit (\w+)\))?", done.stdout + done.stderr)
    if said is None:  # its exit status is no help
        raise MissingComponent(f"{' '.join(words)} does not run here ({done.complaint}); {REMEDY}")
    return _WHEELS.get(said[2], f"{said[1]} ({said[2]})" if said[2] else said[1])


def arguments(load: Load, report: Path) -> list[str]:
    """Return the arguments of perf_analyzer that measure `load` and write the CSV `report`."""
    pinned = str(load.files.certificate or "")
    # perf_analyzer takes a header as an argument only: other users of this machine may see the token while it runs.
    headers = [f"{name}:{value}" for name, value in load.files.read().headers.items()]
    return [
        *(word for header in headers for word in ("-H", header)),
        *(("--ssl-grpc-use-ssl", "--ssl-grpc-root-certifications-file", pinned) if pinned else ()),
        *("-m", load.model, "-u", load.server, "-i", "grpc", "--input-data", str(load.data)),
        *("--concurrency-range", f"{load.concurrency}:{load.concurrency}"),
        *("--measurement-interval", str(max(1, round(1000 * load.window / WINDOWS)))),
        # Stability is judged from whole repetitions, so perf_analyzer must accept every window.
        *("--max-trials", str(WINDOWS), "--stability-percentage", "1000000"),
        *((f"--{load.calls}",) if load.calls != "default" else ()),
        *("--verbose-csv", "-f", str(report)),
    ]


def measure(analyzer: PerfAnalyzer, load: Load, report: Path) -> ClientFigures:
    """Measure `load` with perf_analyzer, which writes its CSV to `report`.

    Raises EndpointError, with perf_analyzer's own message, when it fails or writes no figures.
    """
    report.unlink(missing_ok=True)
    done = run([*analyzer.command, *arguments(load, report)], timeout=10 * load.window + _MARGIN)
    # The program that the wheel puts on PATH (2.60) always has exit status 0.
    if done.returncode or not report.is_file():
        raise EndpointError(
            f"perf_analyzer measured nothing at {load.server} at concurrency {load.concurrency} "
            f"(exit {done.returncode}): {_complaint(done)}; check that 'exatrkx-hpc run-clients' works there"
        )
    return parse_csv(report.read_text(errors="replace"), where=str(report))


def warm_up(analyzer: PerfAnalyzer, load: Load, aside: Path) -> ClientFigures:
    """Run `load` as a warm-up and return its figures; `aside` is a temporary CSV.

    It is tried up to three times: shortly after a change of members the balancer may refuse a new connection, and
    perf_analyzer does not retry. Raises EndpointError like `measure`.
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
    """Return the figures of a CSV with one row that perf_analyzer wrote with --verbose-csv.

    Raises EndpointError for any other content; `where` names the CSV in the message.
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
    """Return the number in a cell; raise EndpointError unless it is finite and above 0."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0.0 < value < math.inf:
        raise _other_form(where, f"{name} is {text[:40]!r}, not a number above 0")
    return value


def _other_form(where: str, why: str) -> EndpointError:
    return EndpointError(f"{where} is not what perf_analyzer 2.60 writes: {why}; remove it and measure again")


def latency_split(model: str, mean_ms: float, times: Iterable[ModelTimes]) -> Split:
    """Split the mean latency `mean_ms` of `model` into its parts, from the servers' counters in the same period.

    `times` has the times of every model. An ensemble has no times of its own, so all other models count as its members:
    no other client may use them in this period. All server parts are 0 when the servers counted nothing.
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
    # The servers also count requests that were in flight at both ends, so their mean may exceed the client's.
    scale = min(1.0, mean_ms / counted_ms) if counted_ms else 1.0
    return Split(
        queue_ms=scale * queue,
        input_ms=scale * entry,
        compute_ms=scale * compute,
        output_ms=scale * output,
        network_ms=max(0.0, mean_ms - scale * counted_ms),
    )


def _complaint(done: Completed) -> str:
    """Return perf_analyzer's last error lines as one line, without its usual output."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
    errors = [line for line in lines if re.match(r"error|failed", line, re.IGNORECASE)]
    return ", ".join(errors[-2:]) if errors else done.complaint
