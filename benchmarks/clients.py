"""Compare run-clients with perf_analyzer in one run: same endpoint, same events, same number of requests in flight.

Starts an embedded farm (a real Triton behind nginx) on the given cores, which the clients share with it. The loads:
`reference` is the reference events (or small synthetic ones) through the shipped ensemble. `small` is the same events,
and `large` is events of 1 MB, both through a model that returns labels at once, so that the client is measured. The
two clients take turns. run-clients also reads event files and writes label files; perf_analyzer has all data in memory.
The rate of run-clients is taken from the middle of the run, from the times of the label files, because perf_analyzer
also excludes its start and its end. With labels in Parquet it is the rate of the whole run. The JSON file also has the
CPU time of each client per event, including the start of its processes.

Example:
    python benchmarks/clients.py --turns 5 --json clients.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from exatrkx_hpc import farm
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.measure import perf_analyzer
from exatrkx_hpc.measure.perf_analyzer import Load, PerfAnalyzer
from exatrkx_hpc.measure.perf_analyzer_install import install
from exatrkx_hpc.tracking.simulation import synthetic
from exatrkx_hpc.work.events.convert import events_to_json
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import Reader, find_events
from exatrkx_hpc.work.events.writing import event_writer
from exatrkx_hpc.work.inference.client import check_endpoint
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.run.run import Settings, run_clients

LOADS = ("reference", "small", "large")
GOALS = {"reference": 1.0, "small": 1.0, "large": 0.9}
_MODEL = "exatrkx"
_LARGE_HITS = 87_381  # 12 bytes each: 1 MiB
_ECHO_CONFIG = """\
backend: "python"
max_batch_size: 0
input [ { name: "FEATURES" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
output [ { name: "LABELS" data_type: TYPE_INT64 dims: [ -1 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""
_ECHO_MODEL = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            hits = pb_utils.get_input_tensor_by_name(request, "FEATURES").as_numpy()
            labels = pb_utils.Tensor("LABELS", np.zeros(len(hits), dtype=np.int64))
            answers.append(pb_utils.InferenceResponse(output_tensors=[labels]))
        return answers
"""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn at one concurrency: events per second of run-clients, inferences per second of perf_analyzer.

    Also has the CPU time of each client per event, in milliseconds.
    """

    ours: float
    theirs: float
    ours_processor_ms: float
    theirs_processor_ms: float

    @property
    def ratio(self) -> float:
        """The rate of run-clients divided by the rate of perf_analyzer."""
        return self.ours / self.theirs


def main() -> None:
    """Measure, print a table, and write the figures as JSON if requested."""
    arguments = _arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    figures: dict[str, object] = {"cores": arguments.cores, "turns": arguments.turns, "seconds": arguments.seconds}
    with tempfile.TemporaryDirectory(prefix="exatrkx-clients-") as name:
        analyzer = _analyzer(arguments.perf_analyzer or Path(name, "perf_analyzer"))
        for load in arguments.loads:
            figures[load] = _measure(arguments, Path(name, load), load, analyzer)
            figures["load_average"] = os.getloadavg()[0]
            if arguments.json:  # after each load, so that stopping a later load loses only that one
                arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["reference", "large"])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16, 32], help="requests in flight in all")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of run-clients, at most")
    parser.add_argument("--cores", type=int, default=2, help="cores for servers and clients together")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each client is measured")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each client and concurrency")
    parser.add_argument("--format", choices=("csv", "npy", "parquet"), default="csv", help="of the events")
    parser.add_argument("--labels", choices=("csv", "parquet"), default="csv", help="the format of the labels")
    parser.add_argument("--quick", action="store_true", help="one short turn of load small, to see that it works")
    parser.add_argument("--perf-analyzer", type=Path, help="a folder that has it, or that it is installed in")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.loads, arguments.in_flight, arguments.turns, arguments.seconds = ["small"], [2], 1, 0.5
    return arguments


def _analyzer(folder: Path) -> PerfAnalyzer:
    return install(folder, lambda news: print(news, file=sys.stderr))


def _measure(arguments: argparse.Namespace, folder: Path, load: str, analyzer: PerfAnalyzer) -> dict[str, object]:
    events = _events(folder, load, arguments.format)
    data = folder / "events.json"
    events_to_json(events, data, tensor="FEATURES", as_base64=True)
    figures: dict[str, object] = {}
    print(f"{load}: {len(find_events(events))} events, {data.stat().st_size / 1e6:.1f} MB as JSON")
    print(f"{'in flight':>9} {'events/s':>9} {'inferences/s':>13} {'ratio':>6}  (medians of {arguments.turns} turns)")
    with _endpoint(folder, load) as endpoint:
        # perf_analyzer keeps all requests and responses in memory: 1 MB events fill 20 GB within a minute.
        seconds = min(arguments.seconds, 2.0) if load == "large" else arguments.seconds
        asks = _PerfAnalyzer(analyzer, endpoint, data, seconds, folder / "report.csv")
        rate = perf_analyzer.warm_up(analyzer, asks.load(arguments.in_flight[-1]), folder / "warm-up.csv").per_second
        for number in arguments.in_flight:
            turns: list[Turn] = []
            for place in range(arguments.turns):
                many = max(40, round((turns[-1].ours if turns else rate) * arguments.seconds))
                copies = _copies(events, folder, many)
                clients = {
                    "ours": lambda: _ours(arguments, endpoint, copies, number),  # noqa: B023
                    "theirs": lambda: asks.rate(number),  # noqa: B023
                }
                found = {who: _timed(clients[who]) for who in sorted(clients, reverse=bool(place % 2))}
                (ours, ours_spent), (theirs, theirs_spent) = found["ours"], found["theirs"]
                turns.append(
                    Turn(
                        ours=ours,
                        theirs=theirs,
                        ours_processor_ms=1000 * ours_spent / many,
                        theirs_processor_ms=1000 * theirs_spent / (theirs * seconds),
                    )
                )
                rate = theirs
            figures[str(number)] = _figures(turns)
            ours, theirs = (statistics.median(getattr(turn, who) for turn in turns) for who in ("ours", "theirs"))
            print(f"{number:9} {ours:9.1f} {theirs:13.1f} {_ratio(turns):6.2f}", flush=True)
    return {"goal": GOALS[load], "in_flight": figures}


def _timed(client: Callable[[], float]) -> tuple[float, float]:
    """Return a client's rate, and the CPU seconds of this process and of its finished children."""

    def spent() -> float:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(one.ru_utime + one.ru_stime for one in used)

    before = spent()
    rate = client()
    return rate, spent() - before


def _figures(turns: list[Turn]) -> dict[str, object]:
    return {
        "events_per_second": statistics.median(turn.ours for turn in turns),
        "inferences_per_second": statistics.median(turn.theirs for turn in turns),
        "ratio": _ratio(turns),
        "processor_ms_per_event": {
            "run-clients": statistics.median(turn.ours_processor_ms for turn in turns),
            "perf_analyzer": statistics.median(turn.theirs_processor_ms for turn in turns),
        },
        "ratios": [round(turn.ratio, 4) for turn in turns],
        "turns": [asdict(turn) for turn in turns],
    }


def _ratio(turns: list[Turn]) -> float:
    """Return the median of the turns' ratios, because other load changes from turn to turn."""
    return statistics.median(turn.ratio for turn in turns)


def _events(folder: Path, load: str, form: str) -> Path:
    made, source = folder / "events", folder / "csv"
    made.mkdir(parents=True)
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if load == "large":
        generator = np.random.default_rng(1)
        hits = generator.uniform((0.01, -1, -1), (0.3, 1, 1), size=(_LARGE_HITS, 3)).astype(np.float32)
        events = {"evt_0": np.round(hits, 6)}
    else:
        if not reference:
            source.mkdir()
            synthetic.write_events(source, events=16, seed=31_415, tracks=100)
        found = find_events(Path(reference, "exatrkx", "events_scaled") if reference else source)
        if form == "csv":
            for event in found:
                shutil.copy(event.path, made)
            return made
        events = {event.name: read_hits(event.path) for event in found}
    with event_writer(made, form) as write:
        for name, hits in events.items():
            write(name, hits)
    return made


@contextlib.contextmanager
def _endpoint(folder: Path, load: str) -> Iterator[str]:
    flags: dict[str, object] = {
        "site": "local",
        "run_root": str(folder / "run").replace("$", "$$"),
        "job.nodes": 1,
        "server.instances": 2,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
    }
    if load != "reference":
        model = folder / "echo" / _MODEL
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(_ECHO_CONFIG)
        (model / "1" / "model.py").write_text(_ECHO_MODEL)
        flags["server.model_repository"] = str(folder / "echo").replace("$", "$$")
    with farm.running(resolve(flags=flags, ambient=False).farm, wait=180) as (_, watch):
        check_endpoint(watch.endpoint, _MODEL, deadline=60)
        yield watch.endpoint


@dataclass(frozen=True)
class _PerfAnalyzer:
    """perf_analyzer at one endpoint with one set of events."""

    analyzer: PerfAnalyzer
    endpoint: str
    data: Path
    seconds: float
    report: Path

    def load(self, in_flight: int) -> Load:
        return Load(server=self.endpoint, model=_MODEL, data=self.data, concurrency=in_flight, window=self.seconds)

    def rate(self, in_flight: int) -> float:
        """Return its inferences per second."""
        return perf_analyzer.measure(self.analyzer, self.load(in_flight), self.report).per_second


def _copies(events: Path, folder: Path, many: int) -> Path:
    """Return a folder with `many` events: links to the files, or one Parquet file with all events."""
    copies = folder / "copies"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    sources = find_events(events)
    if sources[0].path.suffix == ".parquet":
        reader = Reader()
        hits = [reader.read(event).tensors["hits"] for event in sources]
        reader.close()
        with event_writer(copies, "parquet") as write:
            for number in range(many):
                write(f"evt_{number}", hits[number % len(hits)])
        return copies
    for number in range(many):
        source = sources[number % len(sources)].path
        os.link(source, copies / f"evt_{number}{source.suffix}")
    return copies


def _ours(arguments: argparse.Namespace, endpoint: str, events: Path, in_flight: int) -> float:
    """Return the events per second of a run over these events."""
    processes = min(arguments.workers, in_flight)
    # A new folder each time: ext4 without a journal creates files slowly where many were removed a minute before.
    out = Path(tempfile.mkdtemp(prefix="out-", dir=events.parent))
    settings = Settings(
        server=endpoint,
        events=events,
        out=out,
        workers=processes,
        in_flight=max(1, in_flight // processes),
        result_format=arguments.labels,
    )
    report = run_clients(settings)
    report.check()
    if arguments.labels == "parquet":  # a Parquet part has one time for many events
        return report.events_per_second
    return _middle_rate([path.stat().st_mtime_ns for path in Results(out).folder.glob("*.csv")])


def _middle_rate(written: list[int]) -> float:
    """Return the files per second from their times in ns, without the first tenth and the last twentieth of them."""
    written.sort()
    first, last = len(written) // 10, len(written) - 1 - len(written) // 20
    return 1e9 * (last - first) / (written[last] - written[first])


if __name__ == "__main__":
    main()
