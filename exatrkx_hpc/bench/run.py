"""A full scan: start each placement, measure its points until they are precise enough, and stop it."""

from __future__ import annotations

import hashlib
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import IncompleteRun, InputError
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.bench import direct
from exatrkx_hpc.bench.events import BenchEventsWritten, BenchWarming
from exatrkx_hpc.bench.places import Target, of_job, placed, sized, source_models
from exatrkx_hpc.bench.rows import measure_direct, measure_service
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.measure import perf_analyzer
from exatrkx_hpc.measure.bench_table import Point, Row, Store, read_table
from exatrkx_hpc.measure.perf_analyzer import Load, PerfAnalyzer
from exatrkx_hpc.measure.scan import Effort, Grid, Measure, Progress, pending, run_points
from exatrkx_hpc.work.events.convert import events_to_json, holds_events
from exatrkx_hpc.work.inference.client import check_endpoint

#: The input of the shipped ensemble and of the fused model.
TENSOR: Final = "FEATURES"
_TAKEN_UP: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A scan: its farm, points, effort, events and output folder.

    `events` is a folder of events, or a perf_analyzer JSON file for a model with other tensors. `wait` is the maximum
    number of seconds until the servers of a placement are ready. With `job`, the scan measures the servers of that
    running job as they are, and of the grid uses only the concurrency.
    """

    farm: Farm
    grid: Grid
    effort: Effort
    events: Path
    out: Path
    model: str
    analyzer: PerfAnalyzer
    wait: float = 600.0
    job: str | None = None


def run_bench(bench: Bench, *, tell: Tell) -> tuple[Row, ...]:
    """Run or resume the scan and return all its rows; the table is `bench.csv` in the folder of the scan.

    Raises IncompleteRun when a point failed or the time was over; the same call then resumes the scan. Raises the
    errors of starting a farm, ConfigError for another scan in the folder, InputError without events.
    """
    for servers, instances in bench.grid.placements() if bench.job is None else ():
        sized(bench.farm, servers, instances)  # raises ConfigError before anything is started
    scan = _Scan(bench, tell)
    if bench.job is not None:
        scan.place(of_job(bench.farm, bench.job, wait=bench.wait, tell=tell))
    else:
        scan.without_server()
        for servers, instances in bench.grid.placements():
            if scan.wants(bench.grid.points(servers, instances)):
                scan.place(placed(bench.farm, servers, instances, wait=bench.wait, tell=tell))
    scan.check()
    return read_table(bench.out)


class _Scan:
    """A running scan: its store and its progress."""

    def __init__(self, bench: Bench, tell: Tell) -> None:
        self._bench, self._tell = bench, tell
        self._data, digest = _data(bench, tell)
        self._store = Store(bench.out, _facts(bench, digest))
        self._progress = Progress(until=time.monotonic() + 60.0 * bench.effort.minutes)

    def wants(self, points: tuple[Point, ...]) -> bool:
        """Whether one of the points needs a measurement and there is time for it."""
        if not pending(points, self._store, self._bench.effort):
            return False
        progress = self._progress
        progress.out_of_time = progress.out_of_time or progress.clock() >= progress.until
        return not progress.out_of_time

    def without_server(self) -> None:
        """Measure the pipeline without a server, for each number of processes."""
        bench = self._bench
        for point in bench.grid.direct_points():
            if self.wants((point,)):
                with direct.running(source_models(bench.farm), bench.events, point.instances) as work:
                    self._run((point,), measure_direct(work, model=bench.model, window=bench.effort.window))

    def place(self, place: AbstractContextManager[Target]) -> None:
        """Measure the points of one placement, after a warm-up that is not measured."""
        bench = self._bench
        with place as target:
            most = max(*bench.grid.concurrency, target.servers * target.instances)
            self._tell(BenchWarming(servers=target.servers, instances=target.instances))
            # nginx may not have loaded the members yet; unlike run-clients, perf_analyzer does not retry.
            credentials = target.files.read()
            check_endpoint(target.endpoint, bench.model, deadline=_TAKEN_UP, credentials=credentials)
            warm = Load(
                server=target.endpoint,
                model=bench.model,
                data=self._data,
                concurrency=most,
                window=bench.effort.window,
                calls=bench.farm.bench.calls,
                files=target.files,
            )
            perf_analyzer.warm_up(bench.analyzer, warm, bench.out / "warm-up.csv")
            measure = measure_service(
                target,
                bench.analyzer,
                self._store,
                model=bench.model,
                data=self._data,
                window=bench.effort.window,
                calls=bench.farm.bench.calls,
            )
            self._run(bench.grid.points(target.servers, target.instances), measure)

    def _run(self, points: tuple[Point, ...], measure: Measure) -> None:
        effort = self._bench.effort
        run_points(points, measure, store=self._store, effort=effort, progress=self._progress, tell=self._tell)

    def check(self) -> None:
        """Raise IncompleteRun when a point failed or the time was over."""
        failed = self._progress.failed
        if failed:
            point, why = next(iter(failed.items()))
            raise IncompleteRun(f"{len(failed)} point(s) could not be measured; first: {point}: {why}")
        if self._progress.out_of_time:
            raise IncompleteRun(
                f"{self._bench.effort.minutes:g} minutes are over before the scan is done; what was measured is in "
                f"{self._bench.out}, and the same command goes on"
            )


def _data(bench: Bench, tell: Tell) -> tuple[Path, str]:
    """Return the input file of perf_analyzer, converted from events if necessary, and its digest."""
    if not bench.events.exists():
        raise InputError(
            f"{bench.events} does not exist; choose events or a *.json with --events, or create events with "
            "'exatrkx-hpc events generate'"
        )
    path = bench.events
    if holds_events(path):
        path = bench.out / "events.json"
        number = events_to_json(bench.events, path, tensor=TENSOR, as_base64=True)
        tell(BenchEventsWritten(events=number, folder=str(bench.events)))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _facts(bench: Bench, digest: str) -> dict[str, object]:
    return {
        "model": bench.model,
        "events": digest,
        "window": bench.effort.window,
        "device": bench.farm.server.device,
        "exatrkx-hpc": __version__,
        "perf_analyzer": bench.analyzer.version,
        # Scans of earlier versions lack this fact and can be resumed with the default.
        **({"calls": bench.farm.bench.calls} if bench.farm.bench.calls != "default" else {}),
    }
