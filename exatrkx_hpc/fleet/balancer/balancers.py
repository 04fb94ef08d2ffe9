"""The available balancers, and the balancer of a farm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import chosen_port
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.config.values import USER
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
    seconds. Port 0 means any free port, `user` the port derived from the user ID. If the derived port is taken, a free
    port replaces it, and `tell` gets PortTaken.

    If an earlier monitor left a balancer in `folder`, which listens as the section allows, this one has its addresses,
    and can adopt it.

    Raises MissingComponent if the balancer's program is not on this machine.
    """
    left = kind_of(section).left(folder)
    ports = _ports_of(left, section) or (
        chosen_port(section.host, section.grpc_port, "grpc", tell),
        chosen_port(section.host, section.http_port, "http", tell),
    )
    listen = Listen(
        host=section.host,
        grpc_port=ports[0],
        http_port=ports[1],
        worker_processes=_workers(section),
        request_timeout=request_timeout,
        farm=farm,
        job=job,
    )
    return kind_of(section).make(folder, listen)


def end_left(section: BalancerSection, folder: Path) -> None:
    """End the balancer that an earlier monitor left running in `folder` of this machine, if there is one."""
    kind = kind_of(section)
    left = kind.left(folder)
    if left is not None and (balancer := kind.make(folder, left)).adopt():
        balancer.stop()


def _ports_of(left: Listen | None, section: BalancerSection) -> tuple[int, int] | None:
    """Return the ports of a balancer that was left, gRPC and HTTP, if it listens where the section allows."""
    if left is None or left.host != section.host:
        return None
    wanted = ((section.grpc_port, left.grpc_port), (section.http_port, left.http_port))
    # 0 and "user" allow any port: the balancer that is left has chosen one.
    return (left.grpc_port, left.http_port) if all(one in (0, USER, port) for one, port in wanted) else None


def _workers(section: BalancerSection) -> int:
    wanted = section.worker_processes
    return workers_for(len(os.sched_getaffinity(0))) if isinstance(wanted, str) else wanted
