"""Several fake Tritons behind a real nginx; a server that dies starts again, as the node's script does."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balancers import free_listen, member
from fakes.running import PROGRAM, free_port

from exatrkx_hpc.base.process import Child, spawn
from exatrkx_hpc.fleet.balancer.nginx import KIND


@dataclass(frozen=True, kw_only=True)
class FakeFarm:
    """The balancer's address, and the file in which all servers note their deliveries."""

    server: str
    notes: Path
    children: list[Child]

    def deliveries(self) -> Counter[int]:
        """Return how often an event of so many hits was delivered."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return Counter(int(line.split()[0]) for line in lines)

    def servers_of(self, hits: int) -> list[str]:
        """Return the servers that got the events of so many hits, in their order."""
        lines = self.notes.read_text().splitlines()
        return [line.split()[1] for line in lines if int(line.split()[0]) == hits]


@contextlib.contextmanager
def fake_farm(
    folder: Path, number: int, *switches: str, of: Mapping[int, Sequence[str]] | None = None, restart: bool = True
) -> Iterator[FakeFarm]:
    """Run `number` fakes with `switches` behind nginx; `of` has more switches of one of them, by its number."""
    folder.mkdir()
    notes, over = folder / "notes", threading.Event()
    ports = [free_port() for _ in range(number)]

    def start(one: int) -> Child:
        options = ["--port", str(ports[one]), "--notes", str(notes), "--name", f"s{one}"]
        argv = [sys.executable, str(PROGRAM), *options, *switches, *(of or {}).get(one, ())]
        return spawn(argv, log=folder / f"log{one}")

    children = [start(one) for one in range(number)]

    def keep() -> None:
        while not over.wait(0.1):
            for one, child in enumerate(children):
                if child.returncode() is not None:
                    children[one] = start(one)

    keeper = threading.Thread(target=keep)
    balancer = KIND.make(folder / "nginx", free_listen())
    try:
        until = time.monotonic() + 60
        while not all((folder / f"log{one}").read_text().endswith("\n") for one in range(number)):
            assert time.monotonic() < until, "the fakes did not start"
            time.sleep(0.05)
        balancer.start([member(f"s{one}", "127.0.0.1", grpc_port=port) for one, port in enumerate(ports)])
        if restart:
            keeper.start()
        yield FakeFarm(server=balancer.listen.grpc, notes=notes, children=children)
    finally:
        over.set()
        if keeper.is_alive():
            keeper.join()
        balancer.stop()
        for child in children:
            child.stop(grace=2.0)
