"""CPU and GPU utilisation of the servers during a measurement, from Triton's metrics."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.measure.metrics import fetch_text

_CPU, _GPU = "nv_cpu_utilization", "nv_gpu_utilization"


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Mean shares (0 to 1) over all servers and samples; nan if no server reports one.

    `cpu` is for the whole machine of a server, `gpu` for the GPUs that the server sees.
    """

    cpu: float = math.nan
    gpu: float = math.nan


@dataclass
class _Samples:
    cpu: list[float] = field(default_factory=list)
    gpu: list[float] = field(default_factory=list)


@contextlib.contextmanager
def watched(servers: Sequence[str], *, interval: float = 0.5) -> Iterator[Callable[[], Utilisation]]:
    """Sample the servers (`HOST:8002`) every `interval` seconds inside the block; yield a function for the means.

    Servers that do not answer are left out, and values that are not from 0 to 1.
    """
    samples, over = _Samples(), threading.Event()

    def look() -> None:
        while not over.wait(interval):
            for server in servers:
                with contextlib.suppress(EndpointError):
                    _take(fetch_text(server, deadline=interval + 1.0), samples)

    thread = threading.Thread(target=look, name="utilisation", daemon=True)
    thread.start()
    try:
        yield lambda: Utilisation(cpu=_mean(samples.cpu), gpu=_mean(samples.gpu))
    finally:
        over.set()
        thread.join()


def _take(text: str, samples: _Samples) -> None:
    with contextlib.suppress(Exception):  # a stopping server may send half an answer; the parser then raises any error
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not 0.0 <= sample.value <= 1.0:  # also skips NaN, which would make the mean NaN
                    continue
                if sample.name == _CPU:
                    samples.cpu.append(sample.value)
                elif sample.name == _GPU:
                    samples.gpu.append(sample.value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
