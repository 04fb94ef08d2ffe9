"""Measure events per second of the ensemble, the fused model and direct inference, on the same cores in one run.

Starts an embedded farm (a real Triton) bound to the given cores and sends requests to its gRPC port; `direct` runs one
process with the pipeline per core. The fused model has one instance per core and two requests in flight per instance.
The stages of the ensemble work concurrently, on one event each, so half as many instances and twice the requests suit
them better. All modes hold the events in memory, use one PyTorch thread per process, and run on the same cores,
including clients. The windows of the modes alternate. The output also has the CPU time per event, clients and servers
together; this figure is more reliable on a machine with other load. Example:

    python benchmarks/service.py --repeats 5 --json service.json
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import session_members, spawn_piped
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.pipeline import load_tracker
from exatrkx_hpc.tracking.simulation import synthetic
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.run.worker_process import worker_environment
from exatrkx_hpc.work.workloads.exatrkx import FUSED_MODEL, HITS

MODES = ("ensemble", "stages", "fused", "direct")
_TICKS = os.sysconf("SC_CLK_TCK")
_SEED = 31_415


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measurement: events done, the seconds they took, and the CPU seconds, by program and in total."""

    events: int
    seconds: float
    programs: dict[str, float]

    @property
    def processor(self) -> float:
        """The CPU seconds of all processes."""
        return sum(self.programs.values())


def main() -> None:
    """Measure, print a table, and write the figures as JSON if requested."""
    arguments = _arguments()
    if arguments.load:
        _generate_load(arguments)
        return
    if arguments.quick:
        arguments.repeats, arguments.seconds, arguments.cores = 1, 0.5, 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    with tempfile.TemporaryDirectory(prefix="exatrkx-service-") as folder:
        events = _events(arguments, Path(folder))
        figures = asyncio.run(_measure(arguments, Path(folder), events))
    _show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, help="folder of events; default: the reference events, if they are here")
    parser.add_argument("--hits", type=int, help="instead, 16 synthetic events of about so many hits")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["ensemble", "fused", "direct"])
    parser.add_argument("--cores", type=int, default=2, help="cores, instances of the fused model, processes of direct")
    parser.add_argument("--instances", type=int, default=0, help="instances of each stage; default: 1 for two cores")
    parser.add_argument("--in-flight", type=int, default=0, help="requests in flight; default: 2 (fused) or 4 a core")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a window")
    parser.add_argument("--repeats", type=int, default=5, help="windows of each mode")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="one short window each on one core, to see that it works")
    parser.add_argument("--load", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--target", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _events(arguments: argparse.Namespace, folder: Path) -> Path:
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if arguments.events:
        return arguments.events
    if reference and not arguments.hits:
        return Path(reference, "exatrkx", "events_scaled")
    made = folder / "events"
    made.mkdir()
    hits = arguments.hits or 1200
    synthetic.write_events(made, events=16, seed=_SEED, tracks=max(1, hits // 11))
    return made


# --- the processes that make the load -------------------------------------------------------------------


def _generate_load(arguments: argparse.Namespace) -> None:
    """Print `ready`; then, for each line of stdin with a number of seconds, work for this time and print the counts."""
    events = [read_hits(event.path) for event in find_events(arguments.events)]
    if arguments.load == "direct":
        find = load_tracker(Path(arguments.target))
        for hits in events:
            find(hits)
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_direct(find, events, float(line))), flush=True)
    else:
        asyncio.run(_ask(arguments, events))


def _direct(find: object, events: Sequence[NDArray[np.float32]], seconds: float) -> dict[str, float]:
    begin, done = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        find(events[done % len(events)])  # type: ignore[operator]
        done += 1
    return {"events": done, "seconds": time.monotonic() - begin}


async def _ask(arguments: argparse.Namespace, events: Sequence[NDArray[np.float32]]) -> None:
    async with Client(arguments.target, mode=arguments.load) as client:
        for _ in range(2 * arguments.cores):
            await asyncio.gather(*(client.ask({HITS: hits}) for hits in events))
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            begin, done = time.monotonic(), 0

            async def lane(until: float) -> None:
                nonlocal done
                while time.monotonic() < until:
                    done += 1
                    await client.ask({HITS: events[done % len(events)]})

            await asyncio.gather(*(lane(begin + float(line)) for _ in range(arguments.in_flight)))
            print(json.dumps({"events": done, "seconds": time.monotonic() - begin}), flush=True)


# --- the measurement ------------------------------------------------------------------------------------


async def _measure(arguments: argparse.Namespace, folder: Path, events: Path) -> dict[str, object]:
    with _server(arguments, folder) as (address, repository, session):
        loads: dict[str, list[asyncio.subprocess.Process]] = {}
        try:
            for mode in arguments.modes:
                target = str(repository) if mode == "direct" else address
                number = arguments.cores if mode == "direct" else 1
                loads[mode] = [await _start(arguments, mode, target, events) for _ in range(number)]
            windows: dict[str, list[Window]] = {mode: [] for mode in arguments.modes}
            for turn in range(arguments.repeats):
                # The order of the modes rotates, so that no mode profits from its place.
                first = turn % len(arguments.modes)
                for mode in arguments.modes[first:] + arguments.modes[:first]:
                    windows[mode].append(await _window(loads[mode], arguments.seconds, session))
        finally:
            for process in (one for some in loads.values() for one in some):
                process.kill()
                await process.wait()
    return _figures(arguments, events, windows)


@contextlib.contextmanager
def _server(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, int]]:
    """Run one embedded server; yields its gRPC address, its model repository and its session."""
    flags: dict[str, object] = {
        "site": "local",
        "run_root": str(folder).replace("$", "$$"),
        "job.nodes": 1,
    }
    what = resolve(flags=flags, ambient=False).farm
    _build(Path(what.server.model_repository), arguments)
    job = farm.deploy(what)
    try:
        (server,) = farm.wait_ready(job, timeout=180).servers
        yield server.grpc, Path(what.server.model_repository), os.getsid(server.record.pid)
    finally:
        farm.stop(job, drain=False)


def _build(repository: Path, arguments: argparse.Namespace) -> None:
    """Build the models; the stages have their own number of instances."""
    build(asset("model_repos/exatrkx"), repository, device="cpu", instances=arguments.cores)
    for config in repository.glob("*/config.pbtxt"):
        if config.parent.name != FUSED_MODEL:
            text = config.read_text()
            config.write_text(text.replace(f"count: {arguments.cores}", f"count: {_instances(arguments)}"))


def _instances(arguments: argparse.Namespace) -> int:
    return arguments.instances or max(1, arguments.cores // 2)


def _in_flight(arguments: argparse.Namespace, mode: str) -> int:
    return arguments.in_flight or (2 if mode == "fused" else 4) * arguments.cores


async def _start(arguments: argparse.Namespace, mode: str, target: str, events: Path) -> asyncio.subprocess.Process:
    argv = [sys.executable, __file__, "--load", mode, "--target", target, "--events", str(events)]
    argv += ["--cores", str(arguments.cores), "--in-flight", str(_in_flight(arguments, mode))]
    process = await spawn_piped(argv, env=worker_environment())
    said = await asyncio.wait_for(_line(process), timeout=180)
    if said != b"ready\n":
        raise SystemExit(f"the load of mode {mode} did not start; see what it printed")
    return process


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


async def _window(processes: Sequence[asyncio.subprocess.Process], seconds: float, session: int) -> Window:
    """Let the processes work for some seconds, and return their common result."""
    watched = {pid: _program(pid) for pid in session_members(session)} | {one.pid: "load" for one in processes}
    before = {pid: _processor_seconds(pid) for pid in watched}
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{seconds}\n".encode())
    said = [json.loads(await asyncio.wait_for(_line(process), timeout=seconds + 120)) for process in processes]
    programs = dict.fromkeys(watched.values(), 0.0)
    for pid, program in watched.items():
        programs[program] += _processor_seconds(pid) - before[pid]
    return Window(
        events=sum(one["events"] for one in said), seconds=max(one["seconds"] for one in said), programs=programs
    )


def _program(pid: int) -> str:
    """Return the program of a process in the server's session: the model that it runs, or `server`."""
    with contextlib.suppress(OSError):  # the process may have just ended
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return Path(words[1].decode()).parents[1].name if b"stub" in words[0] else "server"
    return "server"


def _processor_seconds(pid: int) -> float:
    """Return the CPU seconds of a process in user and kernel mode; 0 if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


# --- the figures ----------------------------------------------------------------------------------------


def _figures(arguments: argparse.Namespace, events: Path, windows: dict[str, list[Window]]) -> dict[str, object]:
    modes = {
        mode: {
            "events_per_second": statistics.median(one.events / one.seconds for one in some),
            "processor_ms_per_event": statistics.median(1000 * one.processor / one.events for one in some),
            "processor_ms_by_program": _by_program(some),
            "windows": [vars(one) for one in some],
        }
        for mode, some in windows.items()
    }
    ratios = {}
    if "direct" in modes:
        for mode in (one for one in arguments.modes if one != "direct"):
            pairs = list(zip(windows[mode], windows["direct"], strict=True))
            ratios[f"{mode}/direct"] = {
                # Turn by turn, because other load changes from turn to turn.
                "events_per_second": statistics.median(
                    (one.events / one.seconds) / (rival.events / rival.seconds) for one, rival in pairs
                ),
                "processor": statistics.median(
                    (rival.processor / rival.events) / (one.processor / one.events) for one, rival in pairs
                ),
            }
    hits = [len(read_hits(event.path)) for event in find_events(events)]
    return {
        "events": {"number": len(hits), "mean_hits": statistics.mean(hits)},
        "cores": arguments.cores,
        "in_flight": {mode: _in_flight(arguments, mode) for mode in arguments.modes if mode != "direct"},
        "instances": {"fused": arguments.cores, "stages": _instances(arguments)},
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
        "load_average": os.getloadavg()[0],
        "modes": modes,
        "ratios": ratios,
    }


def _by_program(windows: Sequence[Window]) -> dict[str, float]:
    """Return the CPU milliseconds per event of each program that took part."""
    names = {name for window in windows for name in window.programs}
    means = {
        name: statistics.median(1000 * one.programs.get(name, 0.0) / one.events for one in windows) for name in names
    }
    return {name: round(value, 2) for name, value in sorted(means.items()) if value >= 0.01}


def _show(figures: dict) -> None:
    facts = figures["events"]
    print(f"{facts['number']} events of {facts['mean_hits']:.0f} hits, {figures['cores']} core(s)")
    print(f"{'mode':<10} {'events/s':>9} {'ms of processor/event':>22} {'/direct':>8} {'/direct, processor':>19}")
    for mode, one in figures["modes"].items():
        ratio = figures["ratios"].get(f"{mode}/direct")
        ratios = f"{ratio['events_per_second']:8.2f} {ratio['processor']:19.2f}" if ratio else ""
        print(f"{mode:<10} {one['events_per_second']:9.1f} {one['processor_ms_per_event']:22.1f} {ratios}")
        print(f"           of it: {', '.join(f'{k} {v:.1f}' for k, v in one['processor_ms_by_program'].items())}")


if __name__ == "__main__":
    main()
