"""Counters of an endpoint's servers during a run: compute time per stage, events per server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.metrics import compute_spent, fetch_fleet, metrics_url, model_times

DEADLINE = 2.0
"""Timeout of one request to a server for the page, in seconds."""


#: The counters of each server, None for a server that did not answer; None if the servers are unknown.
Seen: TypeAlias = Mapping[str, Snapshot | None] | None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """`compute` is the milliseconds of each stage over all servers, `answered` the requests of each server."""

    compute: Mapping[str, float] = field(default_factory=dict)
    answered: Mapping[str, float] = field(default_factory=dict)


def snapshots(servers: Mapping[str, str], instances: Mapping[str, str] | None = None) -> dict[str, Snapshot | None]:
    """Return the current counters of the servers (name → metrics address), None for a server that does not answer.

    `instances` are the instance names of the server processes, by server name.
    """
    if not servers:
        return {}
    names = {metrics_url(address): name for name, address in servers.items()}
    known = {servers[name]: instance for name, instance in (instances or {}).items() if name in servers}
    try:
        found, _ = fetch_fleet(servers.values(), deadline=DEADLINE, instances=known)
    except EndpointError:
        found = ()
    return dict.fromkeys(servers) | {names[snapshot.url]: snapshot for snapshot in found}


def counted(before: Seen, after: Seen, *, ensemble: str) -> Counted:
    """Return the difference of two snapshots; a server that is only in the second one started in between.

    A server without an answer in one of the snapshots is left out, because its counts cannot be assigned to this time.
    The result is empty if the servers were unknown in one of the snapshots.

    An event is one request to the ensemble, or one to each requested model. So the number of events of a server is the
    count of its busiest model.
    """
    if before is None or after is None:
        return Counted()
    silent = {name for name, snapshot in before.items() if snapshot is None}
    times = {
        name: model_times(snapshot, before.get(name))
        for name, snapshot in after.items()
        if snapshot is not None and name not in silent
    }
    compute: dict[str, float] = {}
    for one in times.values():
        for stage, spent in compute_spent(one, ensemble).items():
            compute[stage] = compute.get(stage, 0.0) + spent
    answered = {name: float(max((model.successes for model in one), default=0)) for name, one in times.items()}
    return Counted(compute=compute, answered={name: number for name, number in answered.items() if number})
