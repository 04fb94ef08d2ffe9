"""Probe the readiness of servers concurrently through Triton's health endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import requests

from exatrkx_hpc.fleet.members.record import ServerRecord

_PROBES_AT_ONCE = 64


def is_ready(record: ServerRecord, timeout: float) -> bool:
    """Return whether the server reports that it and its models are ready; each of two requests has `timeout` seconds.

    Triton must report the ID of the record; a different ID at this address means a different server, such as an orphan.
    """
    base = f"http://{record.address}:{record.http_port}/v2"
    try:
        with requests.Session() as session:
            session.trust_env = False  # a site's web proxy cannot reach compute nodes
            if not session.get(f"{base}/health/ready", timeout=timeout).ok:
                return False
            return bool(session.get(base, timeout=timeout).json()["name"] == record.instance)
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return False


def probe(records: Iterable[ServerRecord], timeout: float) -> dict[str, bool]:
    """Return whether each server is ready, by name; up to 64 probes run at a time."""
    servers = tuple(records)
    if not servers:
        return {}
    with ThreadPoolExecutor(max_workers=min(len(servers), _PROBES_AT_ONCE)) as pool:
        answers = pool.map(lambda record: is_ready(record, timeout), servers)
        return {record.server: answer for record, answer in zip(servers, answers, strict=True)}
