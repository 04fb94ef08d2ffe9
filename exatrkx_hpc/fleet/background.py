"""A monitor in the background: in its own session, so that it survives the terminal, with its output in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.process import Child, own_command, spawn
from exatrkx_hpc.fleet.endpoint import EndpointRecord, read_endpoint
from exatrkx_hpc.launch.run_dir import RunDir

#: In seconds. The monitor first queries the scheduler; Slurm may take a minute for each of two queries.
_START_DEADLINE = 150.0


@dataclass(frozen=True, kw_only=True)
class Background:
    """A monitor in the background: its endpoint's addresses, its machine, its process and its log."""

    job: str
    grpc: str
    http: str
    host: str
    pid: int
    log: str

    def as_dict(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return where it runs, and how to stop it."""
        return (
            f"endpoint: {self.grpc}, kept by process {self.pid} on {self.host}, log {self.log}; "
            f"stop the endpoint with 'kill {self.pid}', the whole farm with 'exatrkx-hpc stop {self.job}'"
        )


def start_in_background(run_dir: RunDir, words: Sequence[str]) -> Background:
    """Start `exatrkx-hpc WORDS`, a monitor of the run directory's job, and return when its endpoint is open.

    Raises EndpointError, with its last line, if it ends before, or does not open the endpoint within 150 s.
    """
    child = spawn([*own_command(), *words], log=run_dir.monitor_log)
    try:
        record = _opened(run_dir, child)
    except BaseException:  # also Ctrl-C: nobody would know of the monitor
        child.stop(grace=10)
        raise
    child.release()
    return Background(
        job=run_dir.job,
        grpc=record.grpc,
        http=record.http,
        host=record.host,
        pid=child.pid,
        log=str(run_dir.monitor_log),
    )


def _opened(run_dir: RunDir, child: Child) -> EndpointRecord:
    """Wait for the endpoint of the monitor `child`; raises EndpointError if the monitor ends, or after 150 s."""
    until = time.monotonic() + _START_DEADLINE
    while time.monotonic() < until:
        record = read_endpoint(run_dir)
        if record is not None and record.is_of(child.pid):
            return record
        if child.returncode() is not None:
            raise EndpointError(f"the monitor ended at once: {_last_line(run_dir.monitor_log)}")
        time.sleep(0.1)
    raise EndpointError(
        f"the monitor did not open its endpoint within {_START_DEADLINE:g} s; see {run_dir.monitor_log}"
    )


def _last_line(log: Path) -> str:
    """Return the last line of a log, without the program's name."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError as error:
        return str(error)
    return lines[-1].removeprefix("exatrkx-hpc: ") if lines else "it printed nothing"
