"""The embedded scheduler: run the rendered scripts on this machine, as Slurm runs them on its nodes.

Each node is a loopback address (127.0.0.2, 127.0.0.3, …), so that the servers of each node use the usual ports. A job
is one session of processes. Its ID, state and end are on disk, so that another command can monitor and cancel it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import port_trouble
from exatrkx_hpc.base.process import Child, kill_session, spawn
from exatrkx_hpc.base.process_id import boot_id, process_id
from exatrkx_hpc.config.values import Engine
from exatrkx_hpc.launch.embedded.cleanup import remove_containers, remove_shared_memory
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir
from exatrkx_hpc.launch.scheduler import Abilities

#: Time, in seconds, that the scripts need beyond drain and exit timeout to write their records and to end.
_END_MARGIN = 10.0


class _Job(BaseModel):
    """What another command needs to find a job; `started` distinguishes it from a later process with the same ID."""

    model_config = ConfigDict(frozen=True)

    session: int
    started: int
    boot: str
    longest_end: float
    name: str = ""
    nodes: tuple[str, ...] = ()
    submit: float | None = None
    script: str = ""
    engine: Engine = "none"


class EmbeddedScheduler:
    """Runs jobs on this machine; the servers need the `local` extra, a tritonserver program or a container engine."""

    abilities = Abilities(
        other_machines=False, allocations=False, brings_triton=True, builds_models=True, measures_direct=True
    )

    def __init__(self, *, run_root: Path, first_address: str) -> None:
        """Keep jobs below `run_root`; nodes are free addresses from `first_address` on."""
        self._farm = FarmDir(run_root)
        self._first = IPv4Address(first_address)
        self._children: dict[str, Child] = {}

    def submit(self, script: Path, plan: FarmPlan) -> str:
        """Start `script` and return its job ID; raises LaunchError if there are too few free addresses."""
        run_dir = self._new_run_dir()
        record = _Job(
            session=0,
            started=0,
            boot=boot_id(),
            longest_end=plan.drain + plan.exit_timeout + _END_MARGIN,
            name=plan.name,
            submit=time.time(),
            script=str(script),
            engine=plan.engine,
        )
        try:
            with contextlib.ExitStack() as locks:
                nodes = self._claim_nodes(plan, locks)
                record = record.model_copy(update={"nodes": tuple(nodes)})
                write_whole(run_dir.plan, plan.model_dump_json(indent=2) + "\n", mode=0o600)
                # On disk before the start: if this program is killed now, the job itself writes its session.
                write_whole(run_dir.embedded_job, record.model_dump_json(), mode=0o600)
                child = self._start(script, plan, run_dir, nodes)
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise
        try:
            record = record.model_copy(update={"session": child.pid, "started": _start_time(child.pid) or 0})
            write_whole(run_dir.embedded_job, record.model_dump_json(), mode=0o600)
        except BaseException:
            child.stop(grace=0)
            raise
        self._children[run_dir.job] = child
        return run_dir.job

    def _start(self, script: Path, plan: FarmPlan, run_dir: RunDir, nodes: Mapping[str, int]) -> Child:
        """Start the script as slurmd does; `nodes` maps addresses to the locks that the job holds from now on."""
        shims = run_dir.programs
        shims.mkdir(mode=0o700)
        (shims / "srun").symlink_to(asset("jobs/embedded-srun.sh"))
        variables = {
            "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": run_dir.job,
            "SLURM_JOB_NAME": plan.name,
            "SLURM_JOB_NODELIST": ",".join(nodes),
            "SLURM_JOB_NUM_NODES": str(len(nodes)),
        }
        argv = ["bash", str(asset("jobs/embedded-job.sh")), str(script), str(run_dir.exit_status), str(run_dir.session)]
        log = run_dir.job_log
        log.touch(mode=0o600)  # output of a prologue is private
        return spawn(argv, log=log, env={**os.environ, **variables}, keep_open=tuple(nodes.values()))

    def settle(self, tell: Tell = untold) -> bool:
        """Return true: `_read` finds the job of a submission that did not finish by the job's own record."""
        return True

    def info(self, job: str) -> JobInfo:
        """Return the job's current state; a job starts at once and has no time limit.

        Raises LaunchError if this scheduler does not know the job.
        """
        record = self._read(job)
        return JobInfo(
            id=job,
            state=self._state(job, record),
            nodes=record.nodes,
            name=record.name,
            submit=record.submit,
            start=record.submit,
        )

    def infos(self, jobs: Sequence[str]) -> dict[str, JobInfo]:
        """Return the current states of `jobs`; UNKNOWN for a job that this scheduler does not know."""
        return {job: self._info(job) for job in jobs}

    def _info(self, job: str) -> JobInfo:
        try:
            return self.info(job)
        except LaunchError as error:
            return JobInfo(id=job, state=JobState.UNKNOWN, reason=str(error))

    def _state(self, job: str, record: _Job) -> JobState:
        run_dir = self._farm.job(job)
        if self._alive(job, record):
            return JobState.RUNNING
        if run_dir.cancelled.exists():
            return JobState.CANCELLED
        with contextlib.suppress(OSError, ValueError):
            return JobState.FAILED if int(run_dir.exit_status.read_text()) else JobState.COMPLETED
        return JobState.NODE_FAIL

    def cancel(self, job: str, *, drain: bool = True) -> None:
        """End the job and wait for its end, then kill its remaining processes and clean up.

        Raises LaunchError if the job is unknown or one of its containers cannot be removed.
        """
        record = self._read(job)
        if self._alive(job, record):
            write_whole(self._farm.job(job).cancelled, "", mode=0o600)
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.session, signal.SIGTERM if drain else signal.SIGUSR1)
            until = time.monotonic() + record.longest_end
            while self._alive(job, record) and time.monotonic() < until:
                time.sleep(0.05)
            kill_session(record.session)
        elif record.session and record.boot == boot_id() and not Path(f"/proc/{record.session}").exists():
            # The job's first process was killed. The session ID stays in use while a process of the session lives.
            kill_session(record.session)
        if job in self._children:
            self._children.pop(job).wait(timeout=5)
        self._sweep(job, record)

    def _alive(self, job: str, record: _Job) -> bool:
        if job in self._children:
            self._children[job].returncode()  # reaps the child, so that an ended job is no zombie
        return record.session > 0 and _start_time(record.session) == record.started

    def _sweep(self, job: str, record: _Job) -> None:
        """Remove the shared memory and the containers of the servers, which a killed script leaves behind."""
        remove_shared_memory(job, record.nodes)
        # The user's shell may lack the engine's module; then doctor reports the remaining containers.
        with contextlib.suppress(MissingComponent):
            remove_containers(record.engine, self._farm.path, job)

    def _read(self, job: str) -> _Job:
        run_dir = self._farm.job(job)
        try:
            record = _Job.model_validate_json(run_dir.embedded_job.read_bytes())
            return record if record.session else _with_own_session(record, run_dir)
        except (OSError, ValidationError) as error:
            raise LaunchError(f"no job {job!r} in {self._farm}; list the jobs with 'ls {self._farm}'") from error

    def _new_run_dir(self) -> RunDir:
        number = int(max(self._farm.job_ids(), default="0", key=int)) + 1
        while True:
            run_dir = self._farm.job(str(number))
            try:
                run_dir.path.mkdir(mode=0o700)
                return run_dir
            except FileExistsError:
                number += 1

    def _claim_nodes(self, plan: FarmPlan, locks: contextlib.ExitStack) -> dict[str, int]:
        """Return the first addresses on which all ports of a node are free, each with its lock.

        A server binds its ports only seconds later. The lock keeps other farms of this user away until the last process
        of the job ends.
        """
        ports = [
            plan.base_port + place * plan.ports_per_server + offset
            for place in range(plan.servers_per_node)
            for offset in range(3)
        ]
        nodes: dict[str, int] = {}
        for address in _loopback_from(self._first):
            if all(port_trouble(address, port) is None for port in ports):
                lock = _try_lock(f"{address}:{plan.base_port}")
                if lock is not None:
                    locks.callback(os.close, lock)
                    nodes[address] = lock
            if len(nodes) == plan.nodes:
                return nodes
        raise LaunchError(
            f"no {plan.nodes} addresses with free ports {ports[0]} to {ports[-1]} found from "
            f"{self._first} on; stop the programs that use them, or change server.base_port"
        )


def _start_time(pid: int) -> int | None:
    """Return the start of a living process in clock ticks since boot, else None."""
    found = process_id(pid)
    return None if found is None else found.started


def _with_own_session(record: _Job, run_dir: RunDir) -> _Job:
    """Return the record with the session that the job itself has written, if it has started."""
    with contextlib.suppress(OSError, ValueError):
        session, started = map(int, run_dir.session.read_text().split())
        return record.model_copy(update={"session": session, "started": started})
    return record


def _loopback_from(first: IPv4Address) -> Iterator[str]:
    for step in range(64):
        yield str(first + step)


def _try_lock(name: str) -> int | None:
    """Return an open file that holds the lock `name` of this user, or None if another process holds it."""
    folder = Path(tempfile.gettempdir(), f"exatrkx-hpc-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
