"""The counters of one Triton since its start, per model, parsed from its metrics text.

Invalid counters are an error: otherwise NaN, infinity or a negative number would become a time, and a missing counter
would become 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from exatrkx_hpc.base.errors import EndpointError

_PREFIX: Final = "nv_inference_"
#: Triton counts in doubles, which are exact for integers up to this; in microseconds it is 285 years.
_LARGEST: Final = 2.0**53


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The counters of one model of one server since the start of the server; durations in microseconds.

    A request may carry several inferences (a batch), and an execution may serve several requests.
    """

    request_success: float = 0.0
    request_failure: float = 0.0
    count: float = 0.0
    exec_count: float = 0.0
    request_duration_us: float = 0.0
    queue_duration_us: float = 0.0
    compute_input_duration_us: float = 0.0
    compute_infer_duration_us: float = 0.0
    compute_output_duration_us: float = 0.0

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in COUNTED})

    def __sub__(self, other: Counters) -> Counters:
        return Counters(**{name: getattr(self, name) - getattr(other, name) for name in COUNTED})

    def fell_since(self, earlier: Counters) -> bool:
        """Return whether any counter is lower than in `earlier`."""
        return any(getattr(self, name) < getattr(earlier, name) for name in COUNTED)


COUNTED: Final = tuple(field.name for field in fields(Counters))
_TIMES: Final = frozenset(name for name in COUNTED if name.endswith("_us"))

Model = tuple[str, str]
"""A model's name and version."""

PerVersion = Mapping[Model, Counters]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All model counters of one server at one time; `instance` is the name of the server process, if known."""

    url: str
    counters: PerVersion
    instance: str = ""

    def since(self, earlier: Snapshot | None) -> Snapshot:
        """Return the difference to `earlier`, a snapshot of the same address.

        Without `earlier`, or if the server restarted in between, all counts are new. A restart means that the instance
        has another name, or that any counter of any model is lower. A restart resets all models, so every model then
        counts in full, even if its counters are higher than before. Only models in both snapshots are compared.
        """
        if earlier is None or self._began_after(earlier):
            return self
        counted = {key: now - earlier.counters.get(key, Counters()) for key, now in self.counters.items()}
        return Snapshot(url=self.url, instance=self.instance, counters=counted)

    def _began_after(self, earlier: Snapshot) -> bool:
        if self.instance and earlier.instance and self.instance != earlier.instance:
            return True
        both = self.counters.keys() & earlier.counters.keys()
        return any(self.counters[key].fell_since(earlier.counters[key]) for key in both)


def parse(text: str, *, url: str, instance: str = "") -> Snapshot:
    """Parse Triton's metrics from a Prometheus text; `url` is its source, `instance` the name of the server process.

    Raises EndpointError when the text is not in Prometheus' format or has no Triton metric, and when a counter of a
    model is missing, repeated, or not a count: NaN, infinite, negative, too large, or not an integer (times need not
    be integers).
    """
    counters: dict[Model, dict[str, float]] = {}
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    triton = False
    for sample in _samples(text, url):
        triton = triton or sample.name.startswith("nv_")
        # Newer parsers append _total to the name of every counter.
        name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
        if name not in COUNTED or not sample.name.startswith(_PREFIX) or "model" not in sample.labels:
            continue
        model = sample.labels["model"], sample.labels.get("version", "")
        where = f"{url}: {_PREFIX}{name} of {_called(model)}"
        series = name, frozenset(sample.labels.items())
        if series in seen:
            raise EndpointError(f"{where} appears twice; check which program listens at this address")
        seen.add(series)
        # Triton reports failures per reason, and all counters per GPU: sum the values of one model.
        values = counters.setdefault(model, {})
        values[name] = values.get(name, 0.0) + _count(sample.value, whole=name not in _TIMES, where=where)
    if not triton:
        raise EndpointError(f"{url} does not return Triton's metrics; set --server to the metrics port")
    _require_all(counters, url)
    counted = {model: Counters(**values) for model, values in counters.items()}
    return Snapshot(url=url, instance=instance, counters=counted)


def _samples(text: str, url: str) -> list[Sample]:
    try:
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except Exception as error:  # the parser raises any type of error for a text that it cannot read
        raise EndpointError(f"{url} does not answer in Prometheus' format; check that it is a metrics port") from error


def _count(value: float, *, whole: bool, where: str) -> float:
    if not math.isfinite(value) or not 0 <= value <= _LARGEST or (whole and value != int(value)):
        raise EndpointError(
            f"{where} is {value:.17g}, which is not a count; check which program listens at this address"
        )
    return value


def _require_all(counters: Mapping[Model, Mapping[str, float]], url: str) -> None:
    for model, values in counters.items():
        if missing := [name for name in COUNTED if name not in values]:
            raise EndpointError(
                f"{url}: {_PREFIX}{missing[0]} of {_called(model)} is missing; start Triton with its default "
                "--metrics-config"
            )


def _called(model: Model) -> str:
    name, version = model
    return f"model {name!r}" + (f" version {version!r}" if version else "")
