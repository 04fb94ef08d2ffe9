"""Measure the cost of the ledger: events per second with and without it in one run, and the coordinator's memory.

A stub replaces the model (tests/support/fakes), so that only the coordinator and its workers are measured. `without` is
the same coordinator with a list in memory and no file; both write every label file. The two run concurrently, each with
one worker, so that other load affects both. The ratio is events per second with the ledger divided by events per second
without it, from the start of the workers to the last labels, as the median over the pairs; `whole` also includes the
scan of the folder and the end. `ledgers_share_of_processor_time` is the share of the ledger's calls, including the
first scan, in the CPU time of the coordinator and its worker; this figure is more reliable on a machine with other
load. `--memory` compares the coordinator's peak memory at two numbers of events. Examples:

    python benchmarks/ledger.py --repeats 5 --json ledger.json
    python benchmarks/ledger.py --memory 1000 100000 --json memory.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from exatrkx_hpc.base.process import run
from exatrkx_hpc.work.events.source import EventFile, find_events
from exatrkx_hpc.work.ledger.ledger import Counts, Ledger
from exatrkx_hpc.work.ledger.open import begin, facts_of
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.outcome import Failed, Result, Strike
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.coordinator import Coordinator
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.run import Settings, is_ready, run_clients
from exatrkx_hpc.work.run.worker import Task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from fakes.running import fake_triton


class NoLedger(Ledger):
    """A ledger in memory only, which does not record results."""

    def __init__(self, folder: Path) -> None:
        """List the events."""
        self._events = list(find_events(folder))
        self._number = len(self._events)

    @property
    def facts(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def begin_run(self, *, server: str, version: str) -> None:
        """Record nothing."""

    def counts(self) -> Counts:
        """Return the number of events."""
        return Counts(waiting=self._number)

    def waiting(self, folder: Path, limit: int = 0) -> list[EventFile]:
        """Return all events at the first call, later none."""
        page, self._events = self._events, []
        return page

    def done(self, result: Result, *, attempts: int = 1) -> None:
        """Record nothing."""

    def strikes(self) -> dict[str, list[Strike]]:
        """Return nothing."""
        return {}

    def versions(self) -> dict[str, int]:
        """Return nothing."""
        return {}

    def empty(self) -> int:
        """Return nothing."""
        return 0

    def fail(self, failed: Failed, *, attempts: int = 1, retries: int = 0) -> None:
        """End the measurement."""
        raise SystemExit(f"{failed.event}: {failed.reason}")

    def failures(self, limit: int) -> tuple[Failed, ...]:
        """Return nothing."""
        return ()

    def commit(self) -> None:
        """Write nothing."""

    def end_run(self, stopped: str | None) -> None:
        """Write nothing."""


class Timed:
    """A ledger whose calls are timed, in CPU seconds of this process."""

    def __init__(self, make: Callable[[], Ledger]) -> None:
        """Open the ledger; the time of this counts, too."""
        begin = time.process_time()
        self._ledger = make()
        self.spent = time.process_time() - begin

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the facts of the ledger, timed."""
        begin = time.process_time()
        facts = self._ledger.facts
        self.spent += time.process_time() - begin
        return facts

    def __getattr__(self, name: str) -> Callable[..., object]:
        """Return the method of that name, timed."""
        method = getattr(self._ledger, name)

        def timed(*values: object, **named: object) -> object:
            begin = time.process_time()
            try:
                return method(*values, **named)
            finally:
                self.spent += time.process_time() - begin

        return timed


def main() -> None:
    """Measure, print the figures, and write them as JSON if requested."""
    arguments = _arguments()
    if arguments.once:
        print(json.dumps(_once(*arguments.once)))
        return
    with tempfile.TemporaryDirectory(prefix="exatrkx-ledger-", dir=arguments.folder) as folder, fake_triton() as fake:
        figures = (_memory if arguments.memory else _cost)(arguments, Path(folder), fake.server)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=3000, help="events of a turn")
    parser.add_argument("--hits", type=int, default=100, help="hits of an event")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of turns")
    parser.add_argument("--memory", type=int, nargs=2, help="two numbers of events (of 1 hit) to compare")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def _once(how: str, server: str, events: str, out: str) -> dict[str, float]:
    """Process all events with the ledger or without it, and return the time and the memory that this took."""
    settings = Settings(server=server, events=Path(events), out=Path(out), workers=1, in_flight=8)
    began, processor, share = time.monotonic(), _processor(), 0.0
    if how == "timed":
        report, spent = _timed(settings)
        share = spent / (_processor() - processor)
    else:
        report = _without(settings) if how == "without" else run_clients(settings)
    return {
        "share": share,
        "done": report.done,
        "seconds": report.seconds,
        "whole": time.monotonic() - began,
        "processor_seconds": _processor() - processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _processor() -> float:
    """Return the CPU seconds of this process and of the workers that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _without(settings: Settings) -> Report:
    settings.folder.mkdir(parents=True)
    return _run(settings, NoLedger(settings.events))


def _timed(settings: Settings) -> tuple[Report, float]:
    settings.folder.mkdir(parents=True)
    facts = facts_of(settings.events, mode=settings.mode, model=settings.models, workload=settings.kind)
    ledger = Timed(lambda: begin(Results(settings.out), settings.events, facts))
    report = _run(settings, cast("Ledger", ledger))
    ledger.close()
    return report, ledger.spent


def _run(settings: Settings, ledger: Ledger) -> Report:
    task = Task(
        server=settings.server,
        models=settings.models,
        folder=str(settings.folder),
        in_flight=settings.in_flight,
        request_timeout=settings.request_timeout,
        patience=settings.patience,
    )
    accounts = Accounts(ledger, Results(settings.out), settings.events, server=settings.server, version="")
    coordinator = Coordinator(
        task, accounts, workers=settings.workers, show=lambda tally: None, is_ready=lambda: is_ready(settings)
    )
    asyncio.run(coordinator.run())
    return coordinator.report()


def _turn(how: str, server: str, events: Path, out: Path) -> dict[str, float]:
    argv = [sys.executable, __file__, "--once", how, server, str(events), str(out)]
    done = run(argv, timeout=3600)
    if done.returncode != 0:
        raise SystemExit(done.complaint)
    return dict(json.loads(done.stdout))


def _make(folder: Path, number: int, hits: int) -> Path:
    folder.mkdir()
    text = "".join(f"{hit / hits:.3f},0.25,-0.5\n" for hit in range(hits))
    for event in range(number):
        (folder / f"evt_{event}.csv").write_text(text)
    return folder


def _cost(arguments: argparse.Namespace, folder: Path, server: str) -> dict[str, object]:
    events = _make(folder / "events", arguments.events, arguments.hits)
    turns: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for repeat in range(arguments.repeats):
        with ThreadPoolExecutor(max_workers=2) as pool:
            pair = {how: pool.submit(_turn, how, server, events, folder / f"{how}-{repeat}") for how in turns}
        for how, turn in pair.items():
            turns[how].append(turn.result())
    shares = [_turn("timed", server, events, folder / f"timed-{one}")["share"] for one in range(arguments.repeats)]
    pairs = list(zip(turns["with"], turns["without"], strict=True))
    ratios, whole = ([bare[figure] / ours[figure] for ours, bare in pairs] for figure in ("seconds", "whole"))
    return {
        "events": arguments.events,
        "hits": arguments.hits,
        "events_per_second": {
            how: statistics.median(turn["done"] / turn["seconds"] for turn in some) for how, some in turns.items()
        },
        "processor_ms_per_event": {
            how: 1000 * statistics.median(turn["processor_seconds"] / turn["done"] for turn in some)
            for how, some in turns.items()
        },
        "ratios": {"with/without": statistics.median(ratios), "with/without, whole": statistics.median(whole)},
        "ledgers_share_of_processor_time": statistics.median(shares),
        "pairs": ratios,
    }


def _memory(arguments: argparse.Namespace, folder: Path, server: str) -> dict[str, object]:
    peaks = {}
    for number in arguments.memory:
        events = _make(folder / f"events-{number}", number, 1)
        turn = _turn("with", server, events, folder / f"out-{number}")
        peaks[number] = {**turn, "ledger_mib": (folder / f"out-{number}" / "ledger.sqlite").stat().st_size / 2**20}
    few, many = (peaks[number]["peak_mib"] for number in arguments.memory)
    return {"coordinator": peaks, "ratios": {"many/few": many / few}}


if __name__ == "__main__":
    main()
