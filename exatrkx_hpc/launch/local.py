"""The embedded scheduler: the rendered scripts run on this machine, as Slurm would run them on its nodes.

Each pretend node is a loopback address (127.0.0.2, 127.0.0.3, …), so that every server has its own address and
the usual ports. A job is one session of processes; its id, state and end are on disk, so that another command
can watch it and end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.assets import asset
from exatrkx_hpc.errors import LaunchError
from exatrkx_hpc.files import write_whole
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.scheduler import JobState
from exatrkx_hpc.ports import port_trouble
from exatrkx_hpc.process import Child, kill_session, spawn

_JOB_FILE = "embedded-job.json"
_STATUS_FILE = "exit-status"
_CANCELLED_FILE = "cancelled"
#: Beyond drain and exit timeout: what the scripts need to write their records and to end.
_END_MARGIN = 10.0


class _Job(BaseModel):
    """What another command needs to find a job again; `started` tells it from a later process of its id."""

    model_config = ConfigDict(frozen=True)

    session: int
    started: int
    longest_end: float


class EmbeddedScheduler:
    """Runs jobs on this machine; the servers need the `local` extra or a tritonserver of the machine's own."""

    def __init__(self, *, run_root: Path, first_address: str) -> None:
        """Keep jobs below `run_root`; the first pretend node is `first_address`, the others follow it."""
        self._run_root = run_root
        self._first = IPv4Address(first_address)
        self._children: dict[str, Child] = {}

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Start `script` and return its job id; raises LaunchError when there are no free addresses."""
        nodes = self._free_nodes(plan)
        run_dir = self._new_run_dir()
        job = run_dir.name
        shims = run_dir / "bin"
        shims.mkdir()
        (shims / "srun").symlink_to(asset("jobs/embedded-srun.sh"))
        variables = {
            "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NAME": plan.name,
            "SLURM_JOB_NODELIST": ",".join(nodes),
            "SLURM_JOB_NUM_NODES": str(len(nodes)),
        }
        status_file = str(run_dir / _STATUS_FILE)
        argv = ["bash", str(asset("jobs/embedded-job.sh")), str(script), status_file]
        child = spawn(argv, log=self._run_root / f"job-{job}.log", env={**os.environ, **variables})
        self._children[job] = child
        record = _Job(
            session=child.pid,
            started=_start_time(child.pid) or 0,
            longest_end=plan.drain + plan.exit_timeout + _END_MARGIN,
        )
        write_whole(run_dir / _JOB_FILE, record.model_dump_json())
        return job

    def state(self, job: str) -> JobState:
        """Return the job's state; raises LaunchError for a job that this scheduler never had."""
        run_dir = self._run_root / job
        record = self._read(job)
        if self._alive(job, record):
            return JobState.RUNNING
        if (run_dir / _CANCELLED_FILE).exists():
            return JobState.CANCELLED
        with contextlib.suppress(OSError, ValueError):
            return JobState.FAILED if int((run_dir / _STATUS_FILE).read_text()) else JobState.COMPLETED
        return JobState.NODE_FAIL

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end; whatever is left of it then is killed."""
        record = self._read(job)
        if self._alive(job, record):
            write_whole(self._run_root / job / _CANCELLED_FILE, "")
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.session, signal.SIGTERM if drain else signal.SIGUSR1)
            until = time.monotonic() + record.longest_end
            while self._alive(job, record) and time.monotonic() < until:
                time.sleep(0.05)
            kill_session(record.session)
        if job in self._children:
            self._children.pop(job).wait(timeout=5)
        self._sweep(job)

    def _alive(self, job: str, record: _Job) -> bool:
        if job in self._children:
            self._children[job].returncode()  # reaps it, so that an ended job is no zombie
        return _start_time(record.session) == record.started

    def _sweep(self, job: str) -> None:
        """Remove what a killed script could not: the shared memory of its servers."""
        for segment in Path("/dev/shm").glob(f"exatrkx_{job}_127.*"):
            with contextlib.suppress(OSError):
                segment.unlink()

    def _read(self, job: str) -> _Job:
        try:
            return _Job.model_validate_json((self._run_root / job / _JOB_FILE).read_text())
        except (OSError, ValidationError) as error:
            raise LaunchError(f"no job {job!r} in {self._run_root}; 'ls {self._run_root}' shows the jobs") from error

    def _new_run_dir(self) -> Path:
        numbers = [int(path.name) for path in self._run_root.iterdir() if path.name.isdigit()]
        number = max(numbers, default=0) + 1
        while True:
            try:
                (self._run_root / str(number)).mkdir(mode=0o700)
                return self._run_root / str(number)
            except FileExistsError:
                number += 1

    def _free_nodes(self, plan: FarmPlan) -> list[str]:
        """Return the first addresses on which every port of a node is free."""
        ports = [
            plan.base_port + place * plan.ports_per_server + offset
            for place in range(plan.servers_per_node)
            for offset in range(3)
        ]
        nodes = []
        for address in _loopback_from(self._first):
            if all(port_trouble(address, port) is None for port in ports):
                nodes.append(address)
            if len(nodes) == plan.nodes:
                return nodes
        raise LaunchError(
            f"{plan.nodes} addresses with free ports {ports[0]} to {ports[-1]} are not to be had from "
            f"{self._first} on; stop what uses them, or set server.base_port"
        )


def _loopback_from(first: IPv4Address) -> Iterator[str]:
    for step in range(64):
        yield str(first + step)


def _start_time(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since boot (field 22 of /proc/PID/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
