"""A command without a job ID acts on the only live job; it never guesses between several."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import threading
import time
from pathlib import Path

import pytest
from command import PROGRAM, complaint, exatrkx_hpc
from fakes.slurm import Cluster

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import EndpointError, LaunchError
from exatrkx_hpc.base.news import untold
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.endpoint import EndpointRecord, write_endpoint
from exatrkx_hpc.fleet.endpoints import monitor_lives, only_endpoint
from exatrkx_hpc.fleet.lease import only_monitor_of
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    return made


def queue(cluster: Cluster, **states: str) -> Farm:
    """Let Slurm report these jobs, `j41="RUNNING"`, each with a run directory."""
    lines = []
    for name, state in states.items():
        run_dir = cluster.folder / "runs" / name[1:]
        run_dir.mkdir(parents=True)
        (run_dir / "plan.json").write_text("{}")
        lines.append(f"{name[1:]}|{state}|nid001|29:36|None|1795329367|1795329367|exatrkx\n")
    cluster.says("squeue", "".join(lines))
    return resolve(flags={"run_root": str(cluster.folder / "runs")}, ambient=False).farm


def record(run_dir: RunDir, *, grpc: str = "127.0.0.1:9191", updated: float | None = None) -> None:
    """Write the endpoint of a monitor on another machine, which was heard of just now."""
    heard = time.time() if updated is None else updated
    made = EndpointRecord(
        job=run_dir.job, grpc=grpc, http="127.0.0.1:1", prometheus="", metrics={}, ready=0, monitor_pid=1, updated=heard
    )
    write_endpoint(run_dir, made)


def test_the_only_live_job_is_meant_although_a_newer_one_has_ended(cluster: Cluster):
    assert farm.find_job(queue(cluster, j41="RUNNING", j42="COMPLETED", j43="CANCELLED")).id == "41"


def test_without_a_live_job_the_newest_is_meant(cluster: Cluster):
    made = queue(cluster, j41="TIMEOUT", j42="COMPLETED")
    assert farm.find_job(made).id == farm.find_job(made, "latest").id == "42"


def test_two_live_jobs_are_named_and_latest_is_the_newest(cluster: Cluster):
    made = queue(cluster, j41="RUNNING", j42="PENDING", j40="COMPLETED")
    with pytest.raises(LaunchError, match=r"2 jobs of .* live: 41 \(RUNNING\), 42 \(PENDING\); name the one that"):
        farm.find_job(made)
    assert farm.find_job(made, "latest").id == "42"


def test_while_slurm_is_silent_every_job_may_live(cluster: Cluster):
    made = queue(cluster, j41="RUNNING", j42="COMPLETED")
    cluster.refuses("squeue", "squeue: error: down\n")
    with pytest.raises(LaunchError, match=r"41 \(UNKNOWN\), 42 \(UNKNOWN\)"):
        farm.find_job(made)


def test_a_job_that_slurm_does_not_know_yet_may_live(cluster: Cluster):
    made = queue(cluster, j41="RUNNING", j42="PENDING")
    cluster.says("squeue", "41|RUNNING|nid001|29:36|None|1795329367|1795329367|exatrkx\n")
    with pytest.raises(LaunchError, match="2 jobs"):
        farm.find_job(made)
    os.utime(FarmDir.of(made).job("42").path, (0, 0))
    assert farm.find_job(made).id == "41"


@pytest.mark.parametrize("command", ["stop", "monitor", "logs"])
def test_no_command_guesses(cluster: Cluster, command: str):
    queue(cluster, j41="RUNNING", j42="RUNNING")
    done = exatrkx_hpc(command, "--run-root", cluster.folder / "runs", cwd=cluster.folder)
    assert "41 (RUNNING), 42 (RUNNING); name the one that you mean" in complaint(done, 4)
    assert cluster.calls("scancel") == []


def test_a_person_at_a_terminal_is_asked(cluster: Cluster):
    queue(cluster, j41="RUNNING", j42="RUNNING")
    log = cluster.folder / "runs" / "job-41.log"
    log.write_text("the words of 41\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(PROGRAM, [PROGRAM, "logs", "--run-root", str(cluster.folder / "runs")])
    said = ""

    def read_until(text: str) -> None:
        nonlocal said
        end = time.monotonic() + 60
        while text not in said and time.monotonic() < end:
            said += os.read(terminal, 4096).decode()
        assert text in said, said

    read_until("job ID")
    assert "41  RUNNING  nid001" in said
    os.write(terminal, b"17\n")
    read_until("'17' is none of them")
    read_until("Ctrl-C")
    os.write(terminal, b"41\n")
    read_until("the words of 41")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_two_endpoints_are_named(tmp_path: Path):
    folder = FarmDir(tmp_path)
    for job, port in (("41", 9191), ("42", 9291)):
        folder.job(job).path.mkdir()
        record(folder.job(job), grpc=f"127.0.0.1:{port}")
    for words in (("run-clients",), ("metrics",)):
        done = exatrkx_hpc(*words, "--run-root", tmp_path, cwd=tmp_path)
        said = complaint(done, 5)
        assert "those of jobs 41 (127.0.0.1:9191), 42 (127.0.0.1:9291); choose one with --job" in said
    made = resolve(flags={"run_root": str(tmp_path)}, ambient=False).farm
    assert farm.endpoint_record(made, "41").grpc == "127.0.0.1:9191"
    assert farm.endpoint_record(made, "latest").grpc == "127.0.0.1:9291"
    record(folder.job("42"), grpc="127.0.0.1:9291", updated=0)
    assert only_endpoint(folder).job == "41", "the other one is that of a killed monitor"


def test_job_and_server_exclude_each_other(tmp_path: Path):
    for command in ("run-clients", "metrics"):
        done = exatrkx_hpc(command, "--job", "1", "--server", "127.0.0.1:1", cwd=tmp_path)
        assert "--server and --job are mutually exclusive" in complaint(done, 2)
    done = exatrkx_hpc("run-clients", "--job", "1", "--mode", "direct", cwd=tmp_path)
    assert "--job and mode direct are mutually exclusive" in complaint(done, 2)


def test_a_monitor_that_has_no_endpoint_yet_is_waited_for(tmp_path: Path):
    run_dir = FarmDir(tmp_path).job("41")
    run_dir.path.mkdir()
    made = resolve(flags={"run_root": str(tmp_path)}, ambient=False).farm
    with pytest.raises(EndpointError, match="no monitor is running"):
        farm.endpoint_record(made)
    with run_dir.monitor_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        later = threading.Timer(4.0, record, (run_dir,))
        later.start()
        assert farm.endpoint_record(made, wait=60).job == "41"
        later.join()


def test_a_monitor_that_cannot_be_observed_may_still_open_its_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a file system that answers late: unknown is not gone."""
    run_dir = FarmDir(tmp_path).job("41")
    run_dir.path.mkdir()
    made = resolve(flags={"run_root": str(tmp_path)}, ambient=False).farm
    monkeypatch.setattr(farm, "monitor_lives", lambda _: None)
    monkeypatch.setattr(farm, "_FIRST", 0.0)
    later = threading.Timer(1.0, record, (run_dir,))
    later.start()
    assert farm.endpoint_record(made, wait=60).job == "41"
    later.join()


def test_without_a_monitor_nothing_is_waited_for_but_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    FarmDir(tmp_path).job("41").path.mkdir()
    made = resolve(flags={"run_root": str(tmp_path)}, ambient=False).farm
    slept: list[float] = []
    monkeypatch.setattr(farm.time, "sleep", slept.append)
    ticks = iter(range(1000))
    monkeypatch.setattr(farm.time, "monotonic", lambda: float(next(ticks)))
    with pytest.raises(EndpointError, match="no monitor is running"):
        farm.endpoint_record(made, wait=60)
    assert len(slept) == 2


def test_a_monitors_life_is_seen_by_its_lock_without_taking_it(tmp_path: Path):
    run_dir = RunDir(tmp_path)
    assert monitor_lives(run_dir) is False
    with run_dir.monitor_lock.open("w") as lock:
        assert monitor_lives(run_dir) is False
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert monitor_lives(run_dir) is True


def test_a_monitors_life_is_seen_by_its_lease_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_dir = RunDir(tmp_path)
    with only_monitor_of(run_dir, untold):
        assert monitor_lives(run_dir) is True
        lease = json.loads(run_dir.monitor_lease.read_text())
        run_dir.monitor_lease.write_text(json.dumps({**lease, "host": "elsewhere", "heartbeat": 0}))
        assert monitor_lives(run_dir) is False, "its lease is void"
