"""Probe the readiness of servers concurrently through Triton's health endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable

from exatrkx_hpc.fleet.members.kept import Connection, Kept
from exatrkx_hpc.fleet.members.record import ServerRecord


class Prober:
    """Probes servers over kept connections; use it from one thread at a time, and close it.

    A probe costs one short request per server, and a connection with a second request where there is none yet:
    4,096 servers take well below 2 s of one core (benchmarks/members.py).
    """

    def __init__(self) -> None:
        self._kept = Kept()

    def __call__(self, records: Iterable[ServerRecord], timeout: float) -> dict[str, bool]:
        """Return by name whether each server is ready; each has `timeout` seconds.

        Triton must report the ID of the record; a different ID at this address means a different server, such as an
        orphan. A name is missing if this machine could not ask, for lack of open files, ports or memory.
        """
        servers = {record.server: record for record in records}

        async def ready(name: str, connection: Connection) -> bool:
            if not (await connection.get("/v2/health/ready")).ok:
                return False
            # Whoever answers over the same connection is the same process.
            connection.checked = connection.checked or _name_in((await connection.get("/v2")).body)
            return connection.checked == servers[name].instance

        addresses = {name: (record.address, record.http_port) for name, record in servers.items()}
        told = self._kept.ask(addresses, ready, timeout=timeout)
        return {name: bool(answer) for name, answer in told.items()}

    def close(self) -> None:
        """Close the connections."""
        self._kept.close()


def _name_in(body: bytes) -> str:
    """Return the ID in Triton's metadata of itself, or '' for what is no such thing."""
    try:
        return str(json.loads(body)["name"])
    except (ValueError, KeyError, TypeError):
        return ""


def probe(records: Iterable[ServerRecord], timeout: float) -> dict[str, bool]:
    """Probe once, over new connections; see Prober."""
    prober = Prober()
    try:
        return prober(records, timeout)
    finally:
        prober.close()


def is_ready(record: ServerRecord, timeout: float) -> bool:
    """Return whether the server reports within `timeout` seconds that it and its models are ready."""
    return probe((record,), timeout).get(record.server, False)
