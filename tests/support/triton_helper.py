"""Start a real Triton for a test, and clean up after it."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
from addresses import own_address

from exatrkx_hpc.base.process import Child, kill_session, spawn
from exatrkx_hpc.launch.embedded.triton import embedded_triton

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class RunningTriton:
    """A started server: its process, its addresses, its log and the prefix of its shared memory."""

    child: Child
    grpc: str
    http: str
    log: Path
    prefix: str

    def is_ready(self) -> bool:
        """Return whether the server reports that it is ready."""
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.http}/v2/health/ready", timeout=2).status_code == 200
        return False

    def segments(self) -> list[str]:
        """Return the names of this server's shared memory segments that exist now."""
        return sorted(path.name for path in SHARED_MEMORY.glob(f"{self.prefix}*"))


class DidNotStart(AssertionError):
    """The server ended, or was not ready in time; the message contains its log."""


def start_triton(repository: Path, work_dir: Path, *, address: str, options: tuple[str, ...] = ()) -> RunningTriton:
    """Start a server over `repository` at `address`, with the default ports; do not wait for it."""
    triton = embedded_triton(work_dir)
    prefix = f"exatrkx_test_{uuid.uuid4().hex[:12]}"
    argv = [
        str(triton.server),
        f"--model-repository={repository}",
        f"--backend-directory={triton.backend_directory}",
        f"--cache-directory={triton.cache_directory}",
        *(f"--{service}-address={address}" for service in ("http", "grpc", "metrics")),
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--exit-timeout-secs=20",
        # Load each model once; Triton would load it twice, to complete a configuration that is already complete.
        "--disable-auto-complete-config",
        *options,
    ]
    log = work_dir / f"triton-{prefix}.log"
    child = spawn(argv, log=log, env={**os.environ, **triton.environment})
    return RunningTriton(child=child, grpc=f"{address}:8001", http=f"http://{address}:8000", log=log, prefix=prefix)


@contextlib.contextmanager
def running_triton(
    repository: Path,
    work_dir: Path,
    *,
    options: tuple[str, ...] = (),
    deadline: float = 90.0,
) -> Iterator[RunningTriton]:
    """Yield a ready server; then end it, remove its shared memory, and fail if any was left after a clean exit."""
    server = start_triton(repository, work_dir, address=own_address(), options=options)
    try:
        until = time.monotonic() + deadline
        while not server.is_ready():
            if server.child.returncode() is not None or time.monotonic() > until:
                raise DidNotStart(server.log.read_text(errors="replace"))
            time.sleep(0.05)
        yield server
    finally:
        server.child.stop(grace=60)
        kill_session(server.child.pid)
        left = server.segments()
        for name in left:
            (SHARED_MEMORY / name).unlink(missing_ok=True)
    # On a loaded machine a model may not unload in time; then Triton exits at once, and leaves its segments.
    hurried = "Exit timeout expired" in server.log.read_text(errors="replace")
    assert hurried or not left, f"Triton left shared memory behind: {left}"
