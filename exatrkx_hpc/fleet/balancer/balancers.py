"""The available balancers, and the balancer of a farm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import chosen_port
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.fleet.balancer import nginx
from exatrkx_hpc.fleet.balancer.access import Access
from exatrkx_hpc.fleet.balancer.address import listen_host
from exatrkx_hpc.fleet.balancer.base import Balancer, BalancerKind, Listen
from exatrkx_hpc.fleet.balancer.certificate import given_certificate, made_certificate, names_of
from exatrkx_hpc.launch.run_dir import FarmDir
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
    farm: FarmDir | None = None,
    nodes: Sequence[str] = (),
) -> Balancer:
    """Return the balancer of a farm, not yet started, with its files in `folder`.

    Port 0 means any free port, `user` the port derived from the user ID. If the derived port is taken, a free port
    replaces it, and `tell` gets PortTaken. `farm` has the secrets, by default the run root above the run directory of
    `folder`; they are made at first use. Host `internal` is this machine's address on the network of `nodes`, the names
    or addresses of the servers' nodes as far as they are known.

    Raises MissingComponent if the balancer's program, or openssl for a certificate, is not on this machine; ConfigError
    if a secret cannot be used.
    """
    kind = kind_of(section)
    host = listen_host(section.host, nodes, tell)
    listen = Listen(
        host=host,
        grpc_port=chosen_port(host, section.grpc_port, "grpc", tell),
        http_port=chosen_port(host, section.http_port, "http", tell),
        worker_processes=section.worker_processes,
        advertise=section.advertise,
        access=_access(section, farm or FarmDir(folder.parent.parent), host),
    )
    return kind.make(folder, listen)


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
