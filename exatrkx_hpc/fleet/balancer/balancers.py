"""The available balancers, and the balancer of a farm."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import chosen_port
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.config.values import USER
from exatrkx_hpc.fleet.balancer import nginx
from exatrkx_hpc.fleet.balancer.access import Access
from exatrkx_hpc.fleet.balancer.address import listen_host
from exatrkx_hpc.fleet.balancer.base import Balancer, BalancerKind, Listen
from exatrkx_hpc.fleet.balancer.certificate import given_certificate, made_certificate, names_of
from exatrkx_hpc.fleet.balancer.limits import workers_for
from exatrkx_hpc.fleet.endpoint import last_ports
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir
from exatrkx_hpc.launch.secrets import farm_server_key, farm_token

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
    root: FarmDir | None = None,
    nodes: Sequence[str] = (),
) -> Balancer:
    """Return the balancer of a farm's job, not yet started, with its files in `folder`.

    `farm` is the farm's name that no other farm has (see base/ownership.py); a request may take `request_timeout`
    seconds. Port 0 means any free port, first that of the job's or the farm's last endpoint; `user` means the port
    derived from the user ID. If such a port is taken, a free port replaces it, and `tell` gets PortTaken.

    `root` has the secrets, by default the run root above the run directory of `folder`; they are made at first use.
    Host `internal` is this machine's address on the network of `nodes`, the names or addresses of the servers' nodes
    as far as they are known.

    If an earlier monitor left a balancer in `folder`, which listens as the section allows, this one has its addresses,
    and can adopt it.

    Raises MissingComponent if the balancer's program, or openssl for a certificate, is not on this machine; ConfigError
    if a secret cannot be used.
    """
    left = kind_of(section).left(folder)
    host = listen_host(section.host, nodes, tell)
    last = last_ports(RunDir(folder.parent))
    ports = _ports_of(left, section, host) or (
        chosen_port(host, section.grpc_port, "grpc", tell, last=last.get("grpc", 0)),
        chosen_port(host, section.http_port, "http", tell, last=last.get("http", 0)),
    )
    listen = Listen(
        host=host,
        grpc_port=ports[0],
        http_port=ports[1],
        worker_processes=_workers(section),
        request_timeout=request_timeout,
        farm=farm,
        job=job,
        advertise=section.advertise,
        access=_access(section, root or FarmDir(folder.parent.parent), host),
    )
    return kind_of(section).make(folder, listen)


def _access(section: BalancerSection, farm: FarmDir, host: str) -> Access:
    certificate, pinned = None, ""
    if section.tls == "auto":
        pinned = str(farm.certificate)
        certificate = made_certificate(farm, names_of(host, section.advertise))
    elif section.tls == "given":
        pinned = section.certificate
        certificate = given_certificate(Path(section.certificate), Path(section.certificate_key))
    return Access(
        token=farm_token(farm) if section.access == "token" else "",
        server_key=farm_server_key(farm),
        certificate=certificate.public if certificate is not None else "",
        private_key=certificate.private if certificate is not None else "",
        pinned=pinned,
        requests=section.client_requests,
        rate=section.client_rate,
    )


def end_left(section: BalancerSection, folder: Path) -> None:
    """End the balancer that an earlier monitor left running in `folder` of this machine, if there is one."""
    kind = kind_of(section)
    left = kind.left(folder)
    if left is not None and (balancer := kind.make(folder, left)).adopt():
        balancer.stop()


def _ports_of(left: Listen | None, section: BalancerSection, host: str) -> tuple[int, int] | None:
    """Return the ports of a balancer that was left, gRPC and HTTP, if it listens where the section allows."""
    if left is None or left.host != host:
        return None
    wanted = ((section.grpc_port, left.grpc_port), (section.http_port, left.http_port))
    # 0 and "user" allow any port: the balancer that is left has chosen one.
    return (left.grpc_port, left.http_port) if all(one in (0, USER, port) for one, port in wanted) else None


def _workers(section: BalancerSection) -> int:
    wanted = section.worker_processes
    return workers_for(len(os.sched_getaffinity(0))) if isinstance(wanted, str) else wanted
