"""Kill run-clients at random moments, and check that each event has one correct result and that the ledger agrees.

A stub replaces the model (tests/support/fakes), so that only run-clients is tested. The events are processed once
undisturbed. Then they are processed again with SIGKILL to a worker, to the coordinator, or to all of them at random
moments, with a resume after each kill of the coordinator. Further faults are a disk that is full for a while (as root,
on a small tmpfs), and a truncated last label file and last write of the ledger. Example:

    python benchmarks/chaos.py --events 2000 --kills 20 --json chaos.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from exatrkx_hpc.base.process import Child, run, spawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from fakes.running import fake_triton

WORKER = "exatrkx_hpc.work.run.worker"
RUN = """
import sys
from pathlib import Path
from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.work.run.run import Settings, run_clients

server, events, out = sys.argv[1:]
try:
    report = run_clients(Settings(server=server, events=Path(events), out=Path(out), workers=2, in_flight=4))
    report.check()
except ExatrkxError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def main() -> None:
    """Run everything, print the figures, and write them as JSON if requested; exit 1 if a check fails."""
    arguments = _arguments()
    randomly = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="exatrkx-chaos-", dir=arguments.folder) as folder, _disk(folder) as disk:
        events = _events(Path(folder), arguments.events)
        with fake_triton("--delay", str(arguments.delay)) as fake:
            began = time.monotonic()
            calm = Path(folder, "calm")
            _finish(fake.server, events, calm)
            undisturbed = time.monotonic() - began
            figures = _disturb(arguments, randomly, fake.server, events, disk)
        figures |= _compare(events, calm, disk / "out") | {"undisturbed_seconds": undisturbed}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(0 if figures["right"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds that the stub takes for an event")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


@contextlib.contextmanager
def _disk(folder: str) -> Iterator[Path]:
    """Yield a folder: a small disk that can be filled, if this user may mount one, else a plain folder."""
    disk = Path(folder, "disk")
    disk.mkdir()
    mounted = os.geteuid() == 0 and run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]).returncode == 0
    try:
        yield disk
    finally:
        if mounted:
            run(["umount", str(disk)])


def _events(folder: Path, number: int) -> Path:
    events = folder / "events"
    events.mkdir()
    for event in range(number):
        np.savetxt(events / f"evt_{event}.csv", np.full((1 + event % 97, 3), 0.5), delimiter=",", fmt="%.2f")
    return events


def _start(server: str, events: Path, out: Path) -> Child:
    return spawn([sys.executable, "-c", RUN, server, str(events), str(out)], log=_log(events))


def _log(events: Path) -> Path:
    return events.with_name("log")


def _finish(server: str, events: Path, out: Path) -> None:
    child = _start(server, events, out)
    status = child.wait(3600)
    if status != 0:
        raise SystemExit(f"a run ended with {status}: {_log(events).read_text()[-2000:]}")


def _disturb(
    arguments: argparse.Namespace, randomly: random.Random, server: str, events: Path, disk: Path
) -> dict[str, object]:
    out = disk / "out"
    killed: Counter[str] = Counter()
    begun = kills = full = 0
    # Events between two kills: few enough that work is left at the last kill.
    share = max(1, arguments.events // (3 * arguments.kills))
    while kills < arguments.kills:
        begun += 1
        child = _start(server, events, out)
        if begun == 2 and os.path.ismount(disk):
            full += _fill(disk, child, _log(events))
            continue
        while child.returncode() is None and kills < arguments.kills:
            before = _labels(out)
            _until(lambda: _labels(out) >= before + share or child.returncode() is not None)  # noqa: B023
            time.sleep(randomly.uniform(0.0, 0.1))
            if child.returncode() is not None:
                raise SystemExit(f"the run ended before the last kill: {_log(events).read_text()[-2000:]}")
            killed[_kill(child, randomly)] += 1
            kills += 1
            time.sleep(0.05)
    child.stop(grace=0.0)
    torn = _tear(out)
    _finish(server, events, out)
    return {"events": arguments.events, "kills": dict(killed), "full_disks": full, "runs": begun + 1, "torn": torn}


def _kill(child: Child, randomly: random.Random) -> str:
    """Kill a worker, the coordinator, or all of them."""
    workers = _workers(child)
    what = randomly.choice(("worker", "coordinator", "all"))
    if what != "worker":
        child.send(signal.SIGKILL)
        child.wait(30)
    for worker in [] if what == "coordinator" else workers[:1] if what == "worker" else workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    if what != "worker":
        _until(lambda: not any(worker.is_running() for worker in workers))
    return what


def _workers(child: Child) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [one for one in psutil.Process(child.pid).children() if WORKER in one.cmdline()]
    return []


def _fill(disk: Path, child: Child, log: Path) -> int:
    """Fill the disk while the run writes to it, check that the run ends and reports it, and free the space."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    status = child.wait(120)
    ballast.unlink()
    said = log.read_text()
    if "No space left on device" not in said:
        raise SystemExit(f"a full disk was not noticed (exit {status}): {said[-2000:]}")
    return 1


def _tear(out: Path) -> list[str]:
    """Truncate the last label file and the last write of the ledger, as a power failure does."""
    torn = []
    last = max(out.joinpath("labels").glob("[!.]*.csv"), key=lambda file: file.stat().st_mtime_ns)
    os.truncate(last, last.stat().st_size // 2)
    torn.append(last.name)
    wal = out / "ledger.sqlite-wal"
    if wal.exists() and wal.stat().st_size > 0:
        os.truncate(wal, max(0, wal.stat().st_size - 1000))
        torn.append(wal.name)
    return torn


def _labels(out: Path) -> int:
    labels = out / "labels"
    return sum(1 for file in labels.iterdir() if file.name[0] != ".") if labels.is_dir() else 0


def _until(condition: object, deadline: float = 120.0) -> None:
    until = time.monotonic() + deadline
    while not condition():  # type: ignore[operator]
        if time.monotonic() > until:
            raise SystemExit("it did not go on")
        time.sleep(0.005)


def _compare(events: Path, calm: Path, out: Path) -> dict[str, object]:
    """Compare the disturbed run's results with those of the undisturbed run, and its ledger with its results."""
    names = {file.name for file in events.iterdir()}
    wanted = {name: (calm / "labels" / name).read_bytes() for name in names}
    found = {file.name: file.read_bytes() for file in (out / "labels").iterdir()}
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        rows = db.execute("SELECT name, state, sha256, result_sha256, attempts FROM events").fetchall()
    agreed = sum(
        state == "done"
        and hashlib.sha256((events / f"{name}.csv").read_bytes()).digest() == content
        and hashlib.sha256(found.get(f"{name}.csv", b"?")).digest() == labels
        for name, state, content, labels, _ in rows
    )
    return {
        "results": len(found),
        "equal": sum(found.get(name) == data for name, data in wanted.items()),
        "ledger_rows": len(rows),
        "ledger_agrees": agreed,
        "attempts": sum(row[4] for row in rows),
        "right": found == wanted and agreed == len(rows) == len(names),
    }


if __name__ == "__main__":
    main()
