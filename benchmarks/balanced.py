"""Compare the balanced endpoint with direct requests to its servers, in turns in one run.

Two embedded servers stand behind nginx. The same requests go to the endpoint, and directly to both servers in equal
parts. The windows alternate, and a ratio compares the windows of one turn. `--hits` chooses the size of an event:
87,000 hits are 1 MB. Small events are the reference events, if they are here. `--model tiny` replaces track
finding by a model that does nothing, which shows the cost of the balancer itself. Example:

    python benchmarks/balanced.py --repeats 6 --json balanced.json
    python benchmarks/balanced.py --access token --tls auto
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.models.build import build
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.workloads.exatrkx import HITS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from repositories import tiny_repository

WAYS = ("balanced", "direct")


def main() -> None:
    """Measure, print the ratio, and write the figures as JSON if requested."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="exatrkx-balanced-") as folder:
        figures = asyncio.run(_measure(arguments, Path(folder)))
    print(
        f"balanced ÷ direct: {figures['ratio']:.3f} in events/s "
        f"({figures['least']:.3f} to {figures['most']:.3f} in {arguments.repeats} turns); "
        f"{figures['balanced']:.1f} and {figures['direct']:.1f} events/s, events of {figures['bytes']:.0f} bytes"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("exatrkx", "tiny"), default="exatrkx", help="track finding, or nothing")
    parser.add_argument("--hits", type=int, default=0, help="hits of an event; default: the reference events, or 1200")
    parser.add_argument("--access", choices=("open", "token"), default="open", help="balancer.access of the farm")
    parser.add_argument("--tls", choices=("off", "auto"), default="off", help="balancer.tls of the farm")
    parser.add_argument("--in-flight", type=int, default=8, help="requests in flight, over both servers")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--repeats", type=int, default=6, help="turns: a window of each way")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def _events(arguments: argparse.Namespace) -> list[NDArray[np.float32]]:
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if reference and not arguments.hits:
        return [read_hits(one.path) for one in find_events(Path(reference, "exatrkx", "events_scaled"))]
    randomly = np.random.default_rng(3)
    return [randomly.random((arguments.hits or 1200, 3), dtype=np.float32) for _ in range(8)]


@contextlib.contextmanager
def _farm(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, tuple[Client, ...]]]:
    """Run two servers behind an endpoint; yields the clients of each way."""
    models = folder / "models"
    flags: dict[str, object] = {
        "site": "local",
        "run_root": str(folder / "run"),
        "job.nodes": 2,
        "server.model_repository": str(models),
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
    }
    if arguments.model == "tiny":
        tiny_repository(models)
    else:
        build(asset("model_repos/exatrkx"), models, device="cpu")
    if (arguments.access, arguments.tls) != ("open", "off"):
        flags |= {"balancer.access": arguments.access, "balancer.tls": arguments.tls}
    with farm.running(resolve(flags=flags, ambient=False).farm, wait=180) as (_, watch):
        servers = [member.grpc for member in watch.view.ready]
        yield {"balanced": (Client(watch.endpoint),) * 2, "direct": tuple(map(Client, servers))}


async def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    events = _events(arguments)
    with _farm(arguments, folder) as clients:
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS:
            await _window(clients[way], events, arguments.in_flight, arguments.seconds / 2)
        for turn in range(arguments.repeats):
            for way in WAYS if turn % 2 else reversed(WAYS):
                rate = await _window(clients[way], events, arguments.in_flight, arguments.seconds)
                rates[way].append(rate)
        for client in {one for some in clients.values() for one in some}:
            await client.close()
    ratios = [one / other for one, other in zip(rates["balanced"], rates["direct"], strict=True)]
    return {
        **{way: statistics.median(rates[way]) for way in WAYS},
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "bytes": statistics.mean(event.nbytes for event in events),
    }


async def _window(
    clients: Sequence[Client], events: Sequence[NDArray[np.float32]], in_flight: int, seconds: float
) -> float:
    """Send requests for some seconds, in equal parts to the clients; return the events per second."""
    begin, done = time.monotonic(), 0

    async def lane(client: Client) -> None:
        nonlocal done
        while time.monotonic() - begin < seconds:
            done += 1
            await client.ask({HITS: events[done % len(events)]})

    await asyncio.gather(*(lane(clients[number % len(clients)]) for number in range(in_flight)))
    return done / (time.monotonic() - begin)


if __name__ == "__main__":
    main()
