"""Measure one repetition of a point: with perf_analyzer and the servers' counters, or without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from exatrkx_hpc import __version__
from exatrkx_hpc.bench.places import Target
from exatrkx_hpc.fleet.endpoint import triton_version
from exatrkx_hpc.measure import perf_analyzer
from exatrkx_hpc.measure.bench_table import Point, Row, Store
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.metrics import fetch_fleet, fleet_times, metrics_url
from exatrkx_hpc.measure.perf_analyzer import ClientFigures, Load, PerfAnalyzer, Split
from exatrkx_hpc.measure.scan import Measure
from exatrkx_hpc.measure.utilisation import Utilisation, watched


def measure_service(
    target: Target,
    analyzer: PerfAnalyzer,
    store: Store,
    *,
    model: str,
    data: Path,
    window: float,
    calls: str = "default",
) -> Measure:
    """Return a function that measures a point at `target`; the CSV of perf_analyzer goes to the store."""
    certificate = str(target.files.certificate or "")
    version = triton_version(target.record().http, certificate, headers=target.files.read().headers)

    def measure(point: Point, repetition: int) -> Row:
        load = Load(
            server=target.endpoint,
            model=model,
            data=data,
            concurrency=point.concurrency,
            window=window,
            calls=calls,
            files=target.files,
        )
        members = target.record().metrics
        now = _Moment(model)
        before = _all_of(members)
        with watched(list(members.values())) as utilisation:
            figures = perf_analyzer.measure(analyzer, load, store.report(point, repetition))
            busy = utilisation()
        after = _all_of(members)
        split = perf_analyzer.latency_split(model, figures.mean_ms, fleet_times(after, before))
        return now.row(
            point,
            repetition,
            figures,
            split,
            busy=busy,
            members=shares(model, members, before, after),
            versions=(version, analyzer.version),
            calls=calls,
        )

    return measure


def measure_direct(work: Callable[[float], ClientFigures], *, model: str, window: float) -> Measure:
    """Return a function that measures a point without a server; its whole latency counts as compute."""

    def measure(point: Point, repetition: int) -> Row:
        now = _Moment(model)
        figures = work(window)
        split = Split(queue_ms=0.0, input_ms=0.0, compute_ms=figures.mean_ms, output_ms=0.0, network_ms=0.0)
        return now.row(point, repetition, figures, split)

    return measure


def _all_of(members: Mapping[str, str]) -> tuple[Snapshot, ...]:
    """Return the counters of all members; raises EndpointError if one is silent.

    A member missing from one of two snapshots would count since its start, or not at all.
    """
    snapshots, silent = fetch_fleet(members.values())
    if silent:
        raise silent[0]
    return snapshots


class _Moment:
    """The load average and the UTC time before a measurement, for its row."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._load_average = os.getloadavg()[0]
        self._began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def row(
        self,
        point: Point,
        repetition: int,
        figures: ClientFigures,
        split: Split,
        *,
        busy: Utilisation | None = None,
        members: str = "",
        versions: tuple[str, str] = ("", ""),
        calls: str = "",
    ) -> Row:
        """Return the row of a measurement; `versions` are those of Triton and perf_analyzer."""
        busy = busy or Utilisation()
        return Row(
            kind=point.kind,
            servers=point.servers,
            instances=point.instances,
            concurrency=point.concurrency,
            repetition=repetition,
            events_per_s=figures.per_second,
            mean_ms=figures.mean_ms,
            p50_ms=figures.p50_ms,
            p95_ms=figures.p95_ms,
            p99_ms=figures.p99_ms,
            queue_ms=split.queue_ms,
            input_ms=split.input_ms,
            compute_ms=split.compute_ms,
            output_ms=split.output_ms,
            network_ms=split.network_ms,
            cpu_utilisation=busy.cpu,
            gpu_utilisation=busy.gpu,
            members=members,
            model=self._model,
            load_average=self._load_average,
            began=self._began,
            exatrkx_hpc=__version__,
            triton=versions[0],
            perf_analyzer=versions[1],
            calls=calls,
        )


def shares(model: str, members: Mapping[str, str], before: tuple[Snapshot, ...], after: tuple[Snapshot, ...]) -> str:
    """Return each member's share of the requests to `model` as `NAME=SHARE NAME=SHARE …`; '' without requests."""
    earlier = {snapshot.url: snapshot for snapshot in before}
    done = {}
    for snapshot in after:
        counters = snapshot.since(earlier.get(snapshot.url)).counters
        done[snapshot.url] = sum(one.request_success for (name, _), one in counters.items() if name == model)
    total = sum(done.values())
    named = {name: done.get(metrics_url(address), 0.0) for name, address in sorted(members.items())}
    return " ".join(f"{name}={number / total:.3f}" for name, number in named.items()) if total else ""
