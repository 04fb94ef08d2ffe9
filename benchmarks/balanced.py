"""Compare the balanced endpoint with direct requests to its servers: open, with a token, and with a token and TLS.

Starts an embedded farm (real Triton servers) and one balancer for each way, all in front of the same servers. `direct`
sends to the servers' own ports, from equally many lanes to each server. The windows of the ways alternate in one run,
and a ratio compares the windows of one turn. Clients, balancers and servers share the machine. The output also has the
CPU time per request of client, balancer and servers together; on a machine with other load, its ratio is more reliable
than the ratio of the rates, and is likewise below 1 if a way costs more than `direct`.

A request is an event for track finding, by default one of the reference events if they are here, else a simulated
event. `--hits` sends random hits: 87,000 hits are 1 MB. `--bytes` sends tensors of this size to a model that returns
its input, which shows the cost of the balancer itself. Examples:

    python benchmarks/balanced.py --repeats 5 --json balanced.json
    python benchmarks/balanced.py --servers 1 --bytes 1200
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc import farm
from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.base.process import session_members
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.balancer.access import Access
from exatrkx_hpc.fleet.balancer.base import Listen
from exatrkx_hpc.fleet.balancer.certificate import made_certificate
from exatrkx_hpc.fleet.balancer.nginx import Nginx
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.secrets import farm_server_key, farm_token
from exatrkx_hpc.tracking.simulation import synthetic
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.inference.channel import Channel

_HOST: Final = "127.0.0.1"
_LIMITS: Final = {"requests": 4096, "rate": 10000}
_ECHO: Final = """\
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUT", one.to_dlpack())]) for one in inputs]
"""
_CONFIG: Final = """\
name: "echo" backend: "python" max_batch_size: 0
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }]
"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """The addresses that requests go to in turn, the credentials, and the sessions of the programs that take part."""

    servers: tuple[str, ...]
    credentials: Credentials
    sessions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measurement: requests per second, and CPU milliseconds per request."""

    per_second: float
    processor_ms: float


def main() -> None:
    """Measure, print a table, and write the figures as JSON if requested."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="exatrkx-balanced-") as folder:
        tensors = _tensors(arguments, Path(folder))
        with _ways(arguments, Path(folder)) as ways:
            rates = asyncio.run(_measure(arguments, ways, tensors))
    figures = {way: _figures(windows, rates["direct"]) for way, windows in rates.items()}
    print(f"{arguments.servers} servers, {statistics.mean(one.nbytes for one in tensors):.0f} bytes per request")
    for way, one in figures.items():
        rate = f"{one['per_second']:9.1f}/s {one['by_direct']:7.3f} of direct ({one['least']:.3f} to {one['most']:.3f})"
        cpu = f"{one['processor_ms']:8.2f} ms of CPU (direct ÷ this: {one['by_direct_processor']:.3f})"
        print(f"{way:<12} {rate}, {cpu}")
    if arguments.json:
        facts = {**vars(arguments), "json": str(arguments.json), "load_average": os.getloadavg()[0]}
        facts["bytes_per_request"] = statistics.mean(one.nbytes for one in tensors)
        arguments.json.write_text(json.dumps({"settings": facts, "ways": figures}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2, help="servers behind the endpoint")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--hits", type=int, default=0, help="random hits of an event")
    size.add_argument("--bytes", type=int, default=0, help="bytes of a tensor that the model returns")
    parser.add_argument("--in-flight", type=int, default=8, help="requests in flight, over all servers")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--repeats", type=int, default=5, help="windows of each way")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="one short window each, to see that it works")
    arguments = parser.parse_args()
    if arguments.servers < 1 or arguments.in_flight < 1 or arguments.in_flight % arguments.servers:
        parser.error("--in-flight must be a multiple of --servers, so that each server gets an equal part")
    if arguments.quick:
        arguments.repeats, arguments.seconds = 1, 0.5
    return arguments


def _figures(windows: Sequence[Window], direct: Sequence[Window]) -> dict[str, Any]:
    """Return medians over the turns; ratios compare the windows of one turn, because other load changes with time."""
    turns = list(zip(windows, direct, strict=True))
    ratios = [one.per_second / base.per_second for one, base in turns]
    return {
        "per_second": statistics.median(one.per_second for one in windows),
        "processor_ms": statistics.median(one.processor_ms for one in windows),
        "by_direct": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "by_direct_processor": statistics.median(base.processor_ms / one.processor_ms for one, base in turns),
        "windows": [vars(one) for one in windows],
    }


def _tensors(arguments: argparse.Namespace, folder: Path) -> list[NDArray[np.float32]]:
    if arguments.bytes:
        return [np.zeros(arguments.bytes // 4, dtype=np.float32)]
    if arguments.hits:
        randomly = np.random.default_rng(3)
        return [randomly.random((arguments.hits, 3), dtype=np.float32) for _ in range(8)]
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    events = Path(reference, "exatrkx", "events_scaled") if reference else folder / "events"
    if not reference:
        events.mkdir()
        synthetic.write_events(events, events=16, seed=31_415, tracks=110)
    return [read_hits(event.path) for event in find_events(events)]


@contextlib.contextmanager
def _ways(arguments: argparse.Namespace, folder: Path) -> Iterator[Mapping[str, Way]]:
    """Run the servers, and a balancer for each way but `direct`."""
    run_root = str(folder / "run").replace("$", "$$")
    flags: dict[str, object] = {"site": "local", "run_root": run_root, "job.nodes": arguments.servers}
    if arguments.bytes:
        (folder / "echo" / "echo" / "1").mkdir(parents=True)
        (folder / "echo" / "echo" / "config.pbtxt").write_text(_CONFIG)
        (folder / "echo" / "echo" / "1" / "model.py").write_text(_ECHO)
        flags["server.model_repository"] = str(folder / "echo").replace("$", "$$")
    what = resolve(flags=flags, ambient=False).farm
    job = farm.deploy(what)
    try:
        servers = farm.wait_ready(job, timeout=180).servers
        root = FarmDir.of(what)
        tls = made_certificate(root, [_HOST])
        key, token = farm_server_key(root), farm_token(root)
        secured = {"certificate": tls.public, "private_key": tls.private}
        kinds = {
            "open": (Access(server_key=key, **_LIMITS), Credentials()),
            "token": (Access(server_key=key, token=token, **_LIMITS), Credentials(token=token)),
            "token+tls": (
                Access(server_key=key, token=token, **secured, **_LIMITS),
                Credentials(token=token, certificate=root.certificate.read_text()),
            ),
        }
        with contextlib.ExitStack() as stack:
            own = tuple({os.getsid(server.record.pid) for server in servers})
            direct = tuple(server.grpc for server in servers)
            ways = {"direct": Way(servers=direct, credentials=Credentials(), sessions=own)}
            for name, (access, credentials) in kinds.items():
                ports = {"grpc_port": free_port(_HOST), "http_port": free_port(_HOST)}
                balancer = Nginx(folder / f"nginx-{name}", Listen(host=_HOST, **ports, access=access))
                stack.callback(balancer.stop)
                balancer.start(servers)
                session = os.getsid(int((folder / f"nginx-{name}" / "nginx.pid").read_text()))
                ways[name] = Way(servers=(balancer.listen.grpc,), credentials=credentials, sessions=(*own, session))
            yield ways
    finally:
        farm.stop(job, drain=False)


async def _measure(
    arguments: argparse.Namespace, ways: Mapping[str, Way], tensors: list[NDArray[np.float32]]
) -> dict[str, list[Window]]:
    model, name, result = ("echo", "IN", "OUT") if arguments.bytes else ("exatrkx", "FEATURES", "LABELS")
    channels = {way: [Channel(server, one.credentials) for server in one.servers] for way, one in ways.items()}
    rates: dict[str, list[Window]] = {way: [] for way in ways}

    async def window(way: str, seconds: float) -> Window:
        before = _processor_seconds(ways[way])
        begin, done = time.monotonic(), 0

        async def lane(channel: Channel) -> None:
            nonlocal done
            while time.monotonic() < begin + seconds:
                await channel.infer(model, {name: tensors[done % len(tensors)]}, [result], timeout=60)
                done += 1

        some = channels[way]
        await asyncio.gather(*(lane(some[number % len(some)]) for number in range(arguments.in_flight)))
        spent = _processor_seconds(ways[way]) - before
        return Window(per_second=done / (time.monotonic() - begin), processor_ms=1000 * spent / done)

    try:
        for way in channels:
            await window(way, min(2.0, arguments.seconds))  # warm up
        for turn in range(arguments.repeats):
            order = list(channels)
            first = turn % len(order)  # no way profits from its place
            for way in order[first:] + order[:first]:
                rates[way].append(await window(way, arguments.seconds))
    finally:
        for channel in (one for some in channels.values() for one in some):
            await channel.close()
    return rates


def _processor_seconds(way: Way) -> float:
    """Return the CPU seconds of this process and of the programs of a way."""
    spent = 0.0
    for pid in (pid for session in way.sessions for pid in session_members(session)):
        with contextlib.suppress(OSError):  # the process may have just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent + time.process_time()


if __name__ == "__main__":
    main()
