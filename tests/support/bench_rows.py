"""Rows of a benchmark scan for tests, with round numbers."""

from __future__ import annotations

from exatrkx_hpc.measure.bench_table import Kind, Row


def row(
    servers: int = 1,
    instances: int = 1,
    concurrency: int = 1,
    rate: float = 10.0,
    *,
    repetition: int = 1,
    kind: Kind = "service",
    cpu: float = 0.5,
    model: str = "exatrkx",
    calls: str = "default",
) -> Row:
    mean = 1000.0 * concurrency / rate
    return Row(
        kind=kind,
        servers=servers,
        instances=instances,
        concurrency=concurrency,
        repetition=repetition,
        events_per_s=rate,
        mean_ms=mean,
        p50_ms=0.9 * mean,
        p95_ms=2.0 * mean,
        p99_ms=3.0 * mean,
        queue_ms=0.2 * mean,
        input_ms=0.1 * mean,
        compute_ms=0.5 * mean,
        output_ms=0.1 * mean,
        network_ms=0.1 * mean,
        cpu_utilisation=cpu,
        members="n1-0=0.500 n2-0=0.500",
        model=model,
        calls=calls,
        load_average=0.25,
        began="2030-01-01T00:00:00Z",
        exatrkx_hpc="0.1.0",
        triton="2.51.0",
        perf_analyzer="2.60.0",
    )


def repeated(*rates: float, **place) -> list[Row]:
    return [row(rate=rate, repetition=number, **place) for number, rate in enumerate(rates, start=1)]


def scan() -> list[Row]:
    """Return rows of 1 or 2 servers with 1 or 2 instances, and rows without a server; 3 instances fill the machine."""
    rows = []
    for servers in (1, 2):
        for instances in (1, 2):
            for concurrency in (1, 2, 4):
                rate = 10.0 * min(concurrency, servers * instances, 3)
                place = {"servers": servers, "instances": instances, "concurrency": concurrency}
                rows += repeated(rate, 1.1 * rate, 0.9 * rate, **place)
    for processes in (1, 2, 4):
        rate = 12.0 * min(processes, 3)
        rows += [row(0, processes, processes, rate, kind="direct", cpu=float("nan"))]
    return rows
