"""Start the fake Triton for a test, and clean up after it."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exatrkx_hpc.base.process import Child, spawn

PROGRAM = Path(__file__).with_name("fake_triton.py")


@dataclass(frozen=True, kw_only=True)
class FakeTriton:
    server: str
    child: Child


@contextlib.contextmanager
def fake_triton(*switches: str) -> Iterator[FakeTriton]:
    """Run the fake with `switches` (see its --help); yield its address and process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        child = spawn([sys.executable, str(PROGRAM), *switches], log=log)
        try:
            until = time.monotonic() + 30
            while not log.read_text().endswith("\n"):
                assert child.returncode() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.02)
            yield FakeTriton(server=f"127.0.0.1:{int(log.read_text().splitlines()[-1])}", child=child)
        finally:
            child.stop(grace=2.0)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def expected(hits):
    """Return the labels of the fake: i mod 7, and the number of hits for hit 0."""
    labels = np.arange(hits, dtype=np.int64) % 7
    labels[:1] = hits
    return labels
