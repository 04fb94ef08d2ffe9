"""What the servers of an endpoint counted during a run: compute time per stage, events per server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.metrics import compute_spent, fetch_fleet, metrics_url, model_times

DEADLINE = 2.0
"""Seconds for the servers to say what they counted; a run does not wait longer for its page."""


#: What each server had counted, None for one that did not answer; None in all when the servers are not known.
Seen: TypeAlias = Mapping[str, Snapshot | None] | None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """`compute` is the milliseconds of each stage, over all servers; `answered` the requests that each answered."""

    compute: Mapping[str, float] = field(default_factory=dict)
    answered: Mapping[str, float] = field(default_factory=dict)


def snapshots(servers: Mapping[str, str], instances: Mapping[str, str] | None = None) -> dict[str, Snapshot | None]:
    """Return what the servers (name → address of its metrics) count now, None for one that does not answer.

    `instances` are the names that their processes have, by the same names.
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
    """Return what was counted between two looks; a server that is only in the second began in between.

    A server that gave no answer at one of the looks is left out: what it counts is not known to be of this time.
    Nothing is counted when the servers were not known at one of the looks.

    Each request of an event is one for the ensemble, or one for every model that is asked; so the busiest model of
    a server says how many it answered.
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
