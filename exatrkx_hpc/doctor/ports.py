"""Checks of the ports: those of the endpoint on this machine, and those of the servers on the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from exatrkx_hpc.base.ports import port_trouble, user_port
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.doctor.orphans import OF_MONITORS
from exatrkx_hpc.fleet.endpoint import read_endpoint
from exatrkx_hpc.fleet.orphans import farm_processes
from exatrkx_hpc.launch.plan import PORTS_PER_SERVER
from exatrkx_hpc.launch.run_dir import FarmDir

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def port_findings(farm: Farm) -> Iterator[Finding]:
    """Yield findings: whether outgoing connections can take the servers' ports, and whether the endpoint's are free."""
    yield _server_ports(farm)
    ports: dict[str, int | str] = {
        "balancer.grpc_port": farm.balancer.grpc_port,
        "balancer.http_port": farm.balancer.http_port,
    }
    if farm.monitor.prometheus:
        ports["monitor.prometheus_port"] = farm.monitor.prometheus_port
    ours = _of_own_monitors(FarmDir.of(farm))
    for key, port in ports.items():
        yield _endpoint_port(key, farm.balancer.host, port, ours)


def _endpoint_port(key: str, host: str, wanted: int | str, ours: Mapping[int, str]) -> Finding:
    what = f"endpoint {key.partition('.')[2]}"
    port = wanted if isinstance(wanted, int) else user_port(key.partition(".")[2].removesuffix("_port"), os.getuid())
    found = f"{host}:{port or 'any free port'}"
    trouble = port_trouble(host, port) if port else None
    if trouble is None:
        return Finding(what=what, ok=True, found=found)
    if port in ours:
        return Finding(what=what, ok=True, found=f"{found}, of the monitor of job {ours[port]}")
    if wanted == "user":
        return Finding(what=what, ok=True, found=f"{found}: {trouble}; the monitor uses any free port instead")
    remedy = f"choose another with {key}, or 0 for any free one"
    return Finding(what=what, ok=False, found=f"{found}: {trouble}", remedy=remedy)


def _of_own_monitors(farm: FarmDir) -> dict[int, str]:
    """Return the ports of the endpoints of this user's monitors on this machine, each with its job."""
    keeps = {process.job for process in farm_processes(farm.path, of_monitors=OF_MONITORS)}
    records = {job: read_endpoint(farm.job(job)) for job in farm.job_ids() if job in keeps}
    return {
        int(address.rpartition(":")[2]): job
        for job, record in records.items()
        if record is not None
        for address in (record.grpc, record.http, record.prometheus)
        if address
    }


def _server_ports(farm: Farm) -> Finding:
    """Check whether the kernel may use one for an outgoing connection; assumes this machine's range on the nodes."""
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
