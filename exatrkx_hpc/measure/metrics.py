"""What Triton counts about itself: per-model times, from one server or a fleet, now or since a moment.

Triton's counters only grow while a server lives, and start again from zero with it. Over several servers the
counters are summed first and divided then: a mean of means would weigh an idle server like a busy one.
"""

from __future__ import annotations

import concurrent.futures
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from exatrkx_hpc.errors import EndpointError

if TYPE_CHECKING:
    from rich.table import Table

_PREFIX: Final = "nv_inference_"
_ASKED_AT_ONCE: Final = 16


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What one model of one server has counted since the server began; durations in microseconds.

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
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in _COUNTED})

    def since(self, earlier: Counters) -> Counters:
        """Return what was counted after `earlier`; all of it when the server began anew in between."""
        if any(getattr(self, name) < getattr(earlier, name) for name in _COUNTED):
            return self
        return Counters(**{name: getattr(self, name) - getattr(earlier, name) for name in _COUNTED})


_COUNTED: Final = tuple(field.name for field in fields(Counters))

PerVersion = Mapping[tuple[str, str], Counters]
"""Counters by model name and version."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All model counters of one server at one moment."""

    url: str
    counters: PerVersion

    def since(self, earlier: Snapshot | None) -> Snapshot:
        """Return what was counted after `earlier`, a snapshot of the same server; all of it without one."""
        if earlier is None:
            return self
        before = earlier.counters
        return Snapshot(
            url=self.url,
            counters={key: now.since(before.get(key, Counters())) for key, now in self.counters.items()},
        )


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """Means of one model over its successful requests, in milliseconds per request; 0 without requests."""

    model: str
    successes: int
    failures: int
    inferences: int
    executions: int
    request_ms: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def compute_ms(self) -> float:
        """Input, inference and output together."""
        return self.input_ms + self.infer_ms + self.output_ms


def metrics_url(server: str) -> str:
    """Return the address of Triton's metrics for `HOST:PORT`; a full URL is returned as it is."""
    return server if "://" in server else f"http://{server}/metrics"


def fetch(server: str, *, deadline: float = 5.0) -> Snapshot:
    """Ask a server (`HOST:8002`, or a URL) for its counters, waiting `deadline` seconds at most.

    Raises EndpointError when nothing answers, or when the answer is not Triton's.
    """
    return parse(fetch_text(server, deadline=deadline), url=metrics_url(server))


def fetch_text(server: str, *, deadline: float = 5.0) -> str:
    """Return what a server (`HOST:8002`, or a URL) says of its metrics; raises EndpointError when nothing answers."""
    import requests

    url = metrics_url(server)
    try:
        with requests.Session() as session:
            session.trust_env = False  # a server is inside the cluster; http_proxy is for the world outside it
            answer = session.get(url, timeout=deadline)
    except requests.ConnectionError as error:
        what = "nothing answers" if "refused" in str(error) else "no metrics"
        raise EndpointError(
            f"{what} at {url}; is the server up? --server wants the metrics port, mostly 8002"
        ) from error
    except requests.RequestException as error:
        raise EndpointError(f"no metrics from {url}: {type(error).__name__}; is the address right?") from error
    if answer.status_code != 200:
        raise EndpointError(f"{url} answers {answer.status_code}; --server wants Triton's metrics port, mostly 8002")
    return str(answer.text)


def fetch_fleet(
    servers: Sequence[str], *, deadline: float = 5.0
) -> tuple[tuple[Snapshot, ...], tuple[EndpointError, ...]]:
    """Ask all servers at once; return the snapshots of those that answer, and why the others gave none.

    Raises EndpointError when none answers, or when `servers` is empty.
    """

    def ask(server: str) -> Snapshot | EndpointError:
        try:
            return fetch(server, deadline=deadline)
        except EndpointError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        answers = tuple(pool.map(ask, servers))
    snapshots = tuple(answer for answer in answers if isinstance(answer, Snapshot))
    errors = tuple(answer for answer in answers if isinstance(answer, EndpointError))
    if not snapshots:
        if len(errors) == 1:
            raise errors[0]
        raise EndpointError(f"none of {len(errors)} servers gives metrics" + "".join(f"; {one}" for one in errors[:1]))
    return snapshots, errors


def parse(text: str, *, url: str) -> Snapshot:
    """Read Triton's metrics from their Prometheus text; `url` says where it is from.

    Raises EndpointError when the text is none, or holds no Triton metric.
    """
    counters: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    triton = False
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                triton = triton or sample.name.startswith("nv_")
                # Newer parsers call every counter _total, whatever the server calls it.
                name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
                if name in _COUNTED and sample.name.startswith(_PREFIX) and "model" in sample.labels:
                    key = sample.labels["model"], sample.labels.get("version", "")
                    # Failures come once for each reason, so values of one key are summed.
                    counters[key][name] = counters[key].get(name, 0.0) + sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise EndpointError(f"{url} does not answer in Prometheus' format; is it a metrics port?") from error
    if not triton:
        raise EndpointError(f"{url} answers, but not with Triton's metrics; --server wants the metrics port")
    return Snapshot(url=url, counters={key: Counters(**values) for key, values in counters.items()})


def model_times(snapshot: Snapshot, earlier: Snapshot | None = None) -> tuple[ModelTimes, ...]:
    """Return the times of each model of one server, all versions together, sorted by name.

    With `earlier`, only what was counted since then. A server that began anew in between counts from zero.
    """
    return fleet_times([snapshot], [earlier] if earlier else [])


def fleet_times(snapshots: Iterable[Snapshot], earlier: Iterable[Snapshot] = ()) -> tuple[ModelTimes, ...]:
    """Return the times of each model over several servers: counters summed first, divided then.

    `earlier` holds former snapshots, matched by url; a server without one counts in full.
    """
    before = {snapshot.url: snapshot for snapshot in earlier}
    sums: dict[str, Counters] = defaultdict(Counters)
    for snapshot in snapshots:
        for (model, _), counted in snapshot.since(before.get(snapshot.url)).counters.items():
            sums[model] += counted
    return tuple(_times(model, sums[model]) for model in sorted(sums))


def _times(model: str, counted: Counters) -> ModelTimes:
    def per_request(microseconds: float) -> float:
        return microseconds / 1000.0 / counted.request_success if counted.request_success else 0.0

    return ModelTimes(
        model=model,
        successes=int(counted.request_success),
        failures=int(counted.request_failure),
        inferences=int(counted.count),
        executions=int(counted.exec_count),
        request_ms=per_request(counted.request_duration_us),
        queue_ms=per_request(counted.queue_duration_us),
        input_ms=per_request(counted.compute_input_duration_us),
        infer_ms=per_request(counted.compute_infer_duration_us),
        output_ms=per_request(counted.compute_output_duration_us),
    )


def stage_shares(times: Sequence[ModelTimes], ensemble: str = "exatrkx") -> dict[str, float]:
    """Return each stage's share (0 to 1) of the compute time of all models but the ensemble itself.

    A model that nobody asked, such as a fused one beside the stages, is left out. Without any request all are there,
    with 0.
    """
    spent = compute_spent(times, ensemble)
    total = sum(spent.values())
    return {model: value / total if total else 0.0 for model, value in spent.items() if value or not total}


def compute_spent(times: Sequence[ModelTimes], ensemble: str = "exatrkx") -> dict[str, float]:
    """Return the milliseconds of compute of each model but the ensemble, whose own are those of its members again."""
    return {one.model: one.compute_ms * one.successes for one in times if one.model != ensemble}


def render_table(times: Sequence[ModelTimes]) -> Table:
    """Return the times as a table for a rich console."""
    from rich.table import Table

    table = Table(title="milliseconds per request")
    table.add_column("model", no_wrap=True)
    for name in ("ok", "failed", "runs", "request", "queue", "input", "infer", "output"):
        table.add_column(name, justify="right")
    for one in times:
        counts = (one.successes, one.failures, one.executions)
        means = (one.request_ms, one.queue_ms, one.input_ms, one.infer_ms, one.output_ms)
        table.add_row(one.model, *(str(count) for count in counts), *(f"{mean:.3f}" for mean in means))
    return table
