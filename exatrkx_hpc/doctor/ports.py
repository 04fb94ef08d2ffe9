"""The ports: those of the endpoint on this machine, and those of the servers on the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.config import Farm
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.launch.plan import PORTS_PER_SERVER
from exatrkx_hpc.ports import port_trouble, user_port

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def port_findings(farm: Farm) -> Iterator[Finding]:
    """Yield whether the endpoint's ports are free, and whether the servers' lie where nothing takes them by chance."""
    yield _server_ports(farm)
    host = farm.balancer.host
    for what, wanted in (("grpc", farm.balancer.grpc_port), ("http", farm.balancer.http_port)):
        own = wanted == "user"
        port = user_port(what, os.getuid()) if wanted == "user" else wanted
        trouble = port_trouble(host, port) if port else None
        found = f"{host}:{port or 'any free port'}" + (f": {trouble}" if trouble else "")
        if own and trouble:  # by another monitor of one's own, most likely
            found, trouble = f"{found}; a monitor takes any free one instead", None
        remedy = f"choose another with balancer.{what}_port, or 0 for any free one" if trouble else ""
        yield Finding(what=f"endpoint {what}_port", ok=trouble is None, found=found, remedy=remedy)


def _server_ports(farm: Farm) -> Finding:
    """Tell whether the kernel may give one of them to a connection; this machine's range stands for the nodes'."""
    first = farm.server.base_port
    last = first + (farm.server.servers_per_node - 1) * PORTS_PER_SERVER + 2
    low, high = (int(number) for number in _OUTGOING.read_text().split())
    found = f"{first} to {last} on each node"
    if last < low or high < first:
        return Finding(what="server ports", ok=True, found=found)
    found += f", of {low} to {high} that the kernel gives to outgoing connections"
    return Finding(
        what="server ports", ok=False, found=found, remedy=f"choose a server.base_port so that all are below {low}"
    )
