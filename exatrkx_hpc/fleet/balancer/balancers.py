"""The available balancers, and the balancer of a farm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import chosen_port
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.config.values import AUTO
from exatrkx_hpc.fleet.balancer import nginx
from exatrkx_hpc.fleet.balancer.base import Balancer, BalancerKind, Listen
from exatrkx_hpc.fleet.balancer.limits import workers_for

#: Every kind of balancer, by name.
BALANCERS: Final[Mapping[str, BalancerKind]] = {"nginx": nginx.KIND}
_USED: Final = "nginx"


def kind_of(section: BalancerSection) -> BalancerKind:
    """Return the kind of balancer that a farm with this section uses."""
    return BALANCERS[_USED]


def balancer_of(
    section: BalancerSection,
    folder: Path,
    tell: Tell = untold,
    *,
    farm: str = "exatrkx",
    job: str = "0",
    request_timeout: float = 60.0,
) -> Balancer:
    """Return the balancer of a farm's job, not yet started, with its files in `folder`.

    `farm` is the farm's name that no other farm has (see base/ownership.py); a request may take `request_timeout`
    seconds. Port 0 means any free port, `user` the port derived from the user ID. If the derived port is taken, a free port
    replaces it, and `tell` gets PortTaken.

    Raises MissingComponent if the balancer's program is not on this machine.
    """
    listen = Listen(
        host=section.host,
        grpc_port=chosen_port(section.host, section.grpc_port, "grpc", tell),
        http_port=chosen_port(section.host, section.http_port, "http", tell),
        worker_processes=_workers(section),
        request_timeout=request_timeout,
        farm=farm,
        job=job,
    )
    return kind_of(section).make(folder, listen)


def _workers(section: BalancerSection) -> int:
    return workers_for(len(os.sched_getaffinity(0))) if section.worker_processes == AUTO else section.worker_processes
