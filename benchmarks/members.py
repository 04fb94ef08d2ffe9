"""Measure a look at many servers: time and CPU of one round of probes, for 64, 512 and 4,096 pretend members.

One process pretends all members, each at a loopback address of its own, with Triton's readiness, ID and metrics. Per
way, the median over the rounds of wall time and of this process's CPU time:

- `first`: the first round, which opens the connections and asks each server for its ID;
- `kept`: a round over kept connections, as the monitor does it at each interval;
- `once`: a round with new connections, as `exatrkx-hpc status` does it;
- `samples`: Triton's counters of all members, read and parsed, as the monitor does it every few seconds.

Every way grows linearly with the members; `kept_ms_per_member` shows it. The members' own CPU time, on the same
machine, is not counted, but on few cores it adds to the wall time. docs/decisions/0013-own-http-probes.md has figures
of HTTP libraries. Examples:

    python benchmarks/members.py --json members.json
    python benchmarks/members.py --members 512 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from exatrkx_hpc.fleet.members.kept import Kept
from exatrkx_hpc.fleet.members.outliers import metrics_of, parse_work
from exatrkx_hpc.fleet.members.probe import Prober, probe
from exatrkx_hpc.fleet.members.record import ServerRecord

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import fakes.pretend_members
from server_records import record

_FIRST = "127.40.0.1"
_PORT = 18000
_TIMEOUT = 20.0
#: Seconds for the pretend members to listen.
_START = 60.0


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for number in arguments.members:
        with _pretended(number):
            found[str(number)] = _look(_records(number), arguments.rounds)
        for way, figures in found[str(number)].items():
            print(f"{number:6d} {way:8s} {figures['wall_ms']:9.1f} ms wall {figures['cpu_ms']:9.1f} ms CPU", flush=True)
    result = {
        "looks": found,
        "kept_ms_per_member": {number: ways["kept"]["wall_ms"] / int(number) for number, ways in found.items()},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def _pretended(number: int) -> Iterator[None]:
    argv = [sys.executable, fakes.pretend_members.__file__, str(number), _FIRST, str(_PORT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not select.select([process.stdout], [], [], _START)[0]:
                raise TimeoutError(f"the {number} pretend members do not listen after {_START:.0f} s")
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the {number} pretend members did not start; see the error above")
            yield
        finally:
            process.kill()


def _records(number: int) -> list[ServerRecord]:
    return [
        record(f"{one}-0", instance=f"1/{one}-0/1", address=one, http_port=_PORT, metrics_port=_PORT)
        for one in fakes.pretend_members.addresses(number, _FIRST)
    ]


def _look(records: list[ServerRecord], rounds: int) -> dict[str, dict[str, float]]:
    prober = Prober()
    try:
        found = {
            "first": _timed(lambda: prober(records, _TIMEOUT), records, 1),
            "kept": _timed(lambda: prober(records, _TIMEOUT), records, rounds),
        }
    finally:
        prober.close()
    found["once"] = _timed(lambda: probe(records, _TIMEOUT), records, rounds)
    samples = _Samples()
    try:
        samples(records)
        found["samples"] = _timed(lambda: samples(records), records, rounds)
    finally:
        samples.close()
    return found


def _timed(look: Callable[[], dict[str, bool]], records: list[ServerRecord], rounds: int) -> dict[str, float]:
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        answers = look()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if silent := [one.server for one in records if not answers.get(one.server)]:
            raise RuntimeError(f"{len(silent)} of {len(records)} pretend members did not answer, such as {silent[0]}")
    return {"wall_ms": 1000 * statistics.median(walls), "cpu_ms": 1000 * statistics.median(cpus)}


class _Samples:
    """Reads and parses the counters of all members over kept connections."""

    def __init__(self) -> None:
        self._kept = Kept()

    def __call__(self, records: list[ServerRecord]) -> dict[str, bool]:
        """Return whether each member's counters were read."""
        addresses = {one.server: (one.address, one.metrics_port) for one in records}
        return {
            name: answer is not None and bool(parse_work(answer.body))
            for name, answer in self._kept.ask(addresses, metrics_of, timeout=_TIMEOUT).items()
        }

    def close(self) -> None:
        """Close the connections."""
        self._kept.close()


if __name__ == "__main__":
    main()
