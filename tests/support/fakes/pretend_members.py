#!/usr/bin/env python3
"""Thousands of pretend servers in one process, each at a loopback address of its own: readiness, ID and metrics.

    pretend_members.py NUMBER FIRST_ADDRESS PORT

Prints `ready` when all listen. Server i has the address FIRST_ADDRESS + i and the ID `1/ADDRESS-0/1`. It answers GET
over kept connections, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from ipaddress import IPv4Address
from pathlib import Path

METRICS = (Path(__file__).parent / "triton_metrics.txt").read_bytes()


def addresses(number: int, first: str) -> list[str]:
    """Return the addresses of the pretend servers."""
    return [str(IPv4Address(first) + i) for i in range(number)]


class Server(asyncio.Protocol):
    def __init__(self, address: str) -> None:
        self.bodies = {
            b"/v2/health/ready": b"",
            b"/v2": json.dumps({"name": f"1/{address}-0/1"}).encode(),
            b"/metrics": METRICS,
        }

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        body = self.bodies[data.split(b" ", 2)[1]]
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main() -> None:
    number, first, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    for address in addresses(number, first):
        await loop.create_server(lambda address=address: Server(address), address, port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
