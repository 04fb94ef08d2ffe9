"""Helpers for tests of full runs: events, a run in a separate process, a small disk, checks of the results."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from exatrkx_hpc.base.process import run, spawn
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.results import parts
from exatrkx_hpc.work.results.read import read_result
from exatrkx_hpc.work.run.run import Settings
from exatrkx_hpc.work.workloads.exatrkx import HITS, LABELS, WORKLOAD
from exatrkx_hpc.work.workloads.given import as_tensors


def make_events(folder: Path, sizes) -> Path:
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        np.savetxt(folder / f"evt_{number}.csv", np.full((size, 3), 0.5), delimiter=",")
        if not size:  # a file of 0 bytes is no event
            (folder / f"evt_{number}.csv").write_text("\n")
    return folder


def assert_whole(events: Path, labels: Path) -> int:
    """Check that the folder has only complete label files; return their number."""
    files = sorted(labels.iterdir())
    for file in files:
        hits = len(read_hits(events / file.name))
        np.testing.assert_array_equal(read_labels(file), np.where(np.arange(hits) == 0, hits, np.arange(hits) % 7))
    return len(files)


def read_labels(path: Path) -> np.ndarray:
    return read_result(WORKLOAD, path)[LABELS]


def labels_text(labels: np.ndarray) -> str:
    return WORKLOAD.encode({LABELS: labels}).decode()


def checked_hits(given: object) -> np.ndarray:
    return as_tensors(WORKLOAD, given)[HITS]


def events_of(path: Path) -> list[str]:
    return parts.events_of(WORKLOAD, path)


def part_file(event: str) -> str:
    return parts.part_file(WORKLOAD, event)


def event_of(file: str) -> str | None:
    return parts.event_of(WORKLOAD, file)


def part_bytes(labels: Sequence[tuple[str, np.ndarray]]) -> bytes:
    return parts.part_bytes(WORKLOAD, [(name, {LABELS: values}) for name, values in labels])


def read_part(path: Path) -> dict[str, np.ndarray]:
    return {name: outputs[LABELS] for name, outputs in parts.read_part(WORKLOAD, path).items()}


def ledger_rows(run_settings: Settings, columns: str = "name, state") -> list[tuple]:
    with contextlib.closing(sqlite3.connect(run_settings.out / "ledger.sqlite")) as db:
        return db.execute(f"SELECT {columns} FROM events ORDER BY key").fetchall()


def label_files(run_settings: Settings) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run_settings.folder.iterdir()}


def workers_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(pid).children() if "exatrkx_hpc.work.run.worker" in child.cmdline()]
    return []


def kill_something(child, randomly: random.Random) -> bool:
    """Kill a worker, the coordinator, or the coordinator and all workers; return whether the coordinator is dead."""
    workers = workers_of(child.pid)
    what = randomly.choice(("worker", "coordinator", "all"))
    if what != "worker":
        child.send(signal.SIGKILL)
    for worker in workers if what == "all" else workers[:1] if what == "worker" else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    return what != "worker"


@contextlib.contextmanager
def tiny_disk(folder: Path, size: str):
    folder.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode != 0:
        pytest.skip("a small tmpfs needs root and the permission to mount")
    try:
        yield folder
    finally:
        assert run(["umount", str(folder)]).returncode == 0


DRIVER = """
import resource, sys
from pathlib import Path
from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.work.run.worker import Task
from exatrkx_hpc.work.run.run import Settings, run_clients

server, events, out, largest, labels, number = sys.argv[1:]
labels = {"result_format": labels, "part_events": int(number)}
if int(largest):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
try:
    run_clients(Settings(server=server, events=Path(events), out=Path(out), workers=2, **labels)).check()
except ExatrkxError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@contextlib.contextmanager
def driver(run_settings: Settings, log: Path, largest: int = 0):
    """Run the settings in a separate process, as the command line does; `largest` limits the file size, in bytes."""
    paths = [str(run_settings.events), str(run_settings.out)]
    labels = [run_settings.result_format, str(run_settings.part_events)]
    child = spawn([sys.executable, "-c", DRIVER, run_settings.server, *paths, str(largest), *labels], log=log)
    try:
        yield child
    finally:
        child.stop(grace=0.0)
