"""Triton's statistics: times per model, of one server or several, since the start or since an earlier snapshot.

Triton's counters only grow during the life of a server; a restarted server counts from zero. For several servers, the
counters are summed before they are divided: a mean of means would give an idle server the weight of a busy one.
"""

from __future__ import annotations

import concurrent.futures
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.http import cluster_session
from exatrkx_hpc.measure.counters import Counters, Snapshot, parse

if TYPE_CHECKING:
    from rich.table import Table

_ASKED_AT_ONCE: Final = 16
#: Measured with Triton 2.51; the same for every stage.
_TWICE: Final = "failed: Triton counts a request that a stage refuses once for the stage, twice for its ensemble"


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
        """The sum of input, inference and output, in milliseconds."""
        return self.input_ms + self.infer_ms + self.output_ms


def metrics_url(server: str) -> str:
    """Return the URL of Triton's metrics for `HOST:PORT`; a full URL is returned unchanged."""
    return server if "://" in server else f"http://{server}/metrics"


def fetch(server: str, *, deadline: float = 5.0, instance: str = "") -> Snapshot:
    """Fetch the counters of a server (`HOST:8002`, or a URL), with a timeout of `deadline` seconds.

    `instance` is the instance name of the server process, if known. Raises EndpointError when nothing answers, or when
    the answer is not from Triton or contains invalid counts.
    """
    return parse(fetch_text(server, deadline=deadline), url=metrics_url(server), instance=instance)


def fetch_text(server: str, *, deadline: float = 5.0) -> str:
    """Return the metrics text of a server (`HOST:8002`, or a URL); raises EndpointError when it sends none."""
    import requests
    from urllib3.exceptions import HTTPError  # requests does not wrap it for a host label over 63 characters

    url = metrics_url(server)
    try:
        with cluster_session() as session:
            answer = session.get(url, timeout=deadline)
    except requests.ConnectionError as error:
        what = "nothing answers" if "refused" in str(error) else "no metrics"
        raise EndpointError(
            f"{what} at {url}; check that the server is up and that --server is its metrics port, usually 8002"
        ) from error
    except (requests.RequestException, HTTPError) as error:
        raise EndpointError(f"no metrics from {url}: {type(error).__name__}; check the address") from error
    if answer.status_code != 200:
        raise EndpointError(f"{url} answers {answer.status_code}; set --server to Triton's metrics port, usually 8002")
    return str(answer.text)


def fetch_fleet(
    servers: Iterable[str], *, deadline: float = 5.0, instances: Mapping[str, str] | None = None
) -> tuple[tuple[Snapshot, ...], tuple[EndpointError, ...]]:
    """Fetch the counters of all servers in parallel; return the snapshots, and the errors of the other servers.

    A server that is listed twice is fetched once. `instances` are the instance names by the entries of `servers`.
    Raises EndpointError when no server answers, or when `servers` is empty.
    """

    def ask(server: str) -> Snapshot | EndpointError:
        try:
            return fetch(server, deadline=deadline, instance=(instances or {}).get(server, ""))
        except EndpointError as error:
            return error

    once = {metrics_url(server): server for server in servers}
    with concurrent.futures.ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        answers = tuple(pool.map(ask, once.values()))
    snapshots = tuple(answer for answer in answers if isinstance(answer, Snapshot))
    errors = tuple(answer for answer in answers if isinstance(answer, EndpointError))
    if not snapshots:
        if len(errors) == 1:
            raise errors[0]
        raise EndpointError(
            f"none of {len(errors)} servers returns metrics" + "".join(f"; {one}" for one in errors[:1])
        )
    return snapshots, errors


def model_times(snapshot: Snapshot, earlier: Snapshot | None = None) -> tuple[ModelTimes, ...]:
    """Return the times of each model of one server, with all versions summed, sorted by name.

    With `earlier`, only the difference to that snapshot. A server that restarted in between counts in full.
    """
    return fleet_times([snapshot], [earlier] if earlier else [])


def fleet_times(snapshots: Iterable[Snapshot], earlier: Iterable[Snapshot] = ()) -> tuple[ModelTimes, ...]:
    """Return the times of each model over several servers: sum the counters, then divide.

    `earlier` contains earlier snapshots, matched by `url`; a server without one counts in full.
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
    """Return each stage's share (0 to 1) of the compute time of all models except the ensemble itself.

    A model without compute time, such as an unused fused model, is left out. If no model has any, the result contains
    all of them with 0.
    """
    spent = compute_spent(times, ensemble)
    total = sum(spent.values())
    return {model: value / total if total else 0.0 for model, value in spent.items() if value or not total}


def compute_spent(times: Sequence[ModelTimes], ensemble: str = "exatrkx") -> dict[str, float]:
    """Return the compute time of each model in milliseconds, without the ensemble, which repeats its members'."""
    return {one.model: one.compute_ms * one.successes for one in times if one.model != ensemble}


def render_table(times: Sequence[ModelTimes]) -> Table:
    """Return the times as a table for a rich console."""
    from rich.table import Table

    table = Table(title="milliseconds per request", caption=_TWICE if any(one.failures for one in times) else None)
    table.add_column("model", no_wrap=True)
    for name in ("ok", "failed", "runs", "request", "queue", "input", "infer", "output"):
        table.add_column(name, justify="right")
    for one in times:
        counts = (one.successes, one.failures, one.executions)
        means = (one.request_ms, one.queue_ms, one.input_ms, one.infer_ms, one.output_ms)
        table.add_row(one.model, *(str(count) for count in counts), *(f"{mean:.3f}" for mean in means))
    return table
