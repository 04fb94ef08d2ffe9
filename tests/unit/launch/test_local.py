"""The embedded scheduler and the scripts that it runs, with a fake tritonserver that misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import pytest
from addresses import own_address
from command import PROGRAM
from hostile_names import HOSTILE_FOLDERS
from local_farms import FAKE_TRITON, local_farm
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.process import run, session_members
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.launch.embedded.scheduler import EmbeddedScheduler


@pytest.fixture
def deploy(tmp_path):
    """Deploy a farm of fakes; what still runs at the end is ended."""
    jobs = []

    def _deploy(run_root: Path = tmp_path, **flags: object) -> farm.Job:
        jobs.append(farm.deploy(local_farm(run_root, **flags)))
        return jobs[-1]

    yield _deploy
    for job in jobs:
        farm.stop(job, drain=False)


def record(job: farm.Job, *, state: str, starts: int = 1) -> ServerRecord:
    """Wait for a record of the job's first server in this state and start."""

    def found() -> ServerRecord | None:
        records = read_records(job.run_dir)
        return next((r for r in records if r.state == state and r.starts == starts), None)

    return until(found, what=f"record {state} of start {starts}; now {read_records(job.run_dir)}")


def following(address: str) -> str:
    """The address of the next pretend node."""
    return str(IPv4Address(address) + 1)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def session_of(job: farm.Job) -> int:
    return job.scheduler._read(job.id).session


def test_each_node_has_an_address_of_its_own(deploy):
    job = deploy(job__nodes=2, server__servers_per_node=2)
    records = until(lambda: (r := read_records(job.run_dir)) and len(r) == 4 and r, what="four records")
    first = job.farm.cluster.local_address
    places = {(r.node, r.http_port) for r in records}
    assert places == {(node, port) for node in (first, following(first)) for port in (8000, 8010)}
    assert all(r.address == r.node and r.job == job.id and r.metrics_port == r.http_port + 2 for r in records)
    assert job.scheduler.info(job.id).state is JobState.RUNNING


@pytest.mark.parametrize(("drain", "note"), [(True, "drained"), (False, "stopped")])
def test_a_stopped_job_leaves_its_last_word_and_no_process(deploy, drain, note):
    job = deploy()
    record(job, state="starting")
    session = session_of(job)
    farm.stop(job, drain=drain)
    assert record(job, state="gone").note == note
    assert job.scheduler.info(job.id).state is JobState.CANCELLED
    assert session_members(session) == []


def test_draining_is_said_before_the_server_ends(deploy):
    job = deploy(server__drain=3)
    pid = until(lambda: record(job, state="starting").pid, what="a server")
    os.kill(session_of(job), signal.SIGTERM)
    record(job, state="draining")
    assert Path(f"/proc/{pid}").exists()
    assert record(job, state="gone").note == "drained"


def test_a_stop_at_once_cuts_the_drain_short(deploy):
    job = deploy(server__drain=600)
    record(job, state="starting")
    os.kill(session_of(job), signal.SIGTERM)
    record(job, state="draining")
    farm.stop(job, drain=False)
    assert record(job, state="gone").note == "stopped"


def test_a_killed_server_starts_again_and_its_own_processes_are_gone(deploy, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_TRITON", "child")
    monkeypatch.setenv("FAKE_TRITON_CHILD", str(tmp_path / "child"))
    job = deploy()
    first = record(job, state="starting")
    child = int(until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), what="a child"))
    segment = Path("/dev/shm") / f"exatrkx_{job.id}_{first.server}_left"
    segment.write_text("")
    os.kill(first.pid, signal.SIGKILL)
    second = record(job, state="starting", starts=2)
    assert second.pid != first.pid
    assert not lives(child)
    assert not segment.exists()


def test_a_server_that_never_works_is_given_up(deploy, monkeypatch):
    monkeypatch.setenv("FAKE_TRITON", "exit:7")
    job = deploy(server__max_restarts=1)
    until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job")
    assert job.scheduler.info(job.id).state is JobState.FAILED
    last = record(job, state="gone", starts=2)
    assert "status 7" in last.note
    assert "gave up" in last.note
    assert f"logs/{last.server}.log" in last.note


def test_a_server_that_does_not_end_is_killed(deploy, monkeypatch):
    monkeypatch.setenv("FAKE_TRITON", "ignore-term")
    job = deploy(server__exit_timeout=1)
    pid = record(job, state="starting").pid
    time.sleep(0.5)  # it ignores the signal only once it has said so
    farm.stop(job, drain=False)
    assert not lives(pid)


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_any_folder_name_will_do(deploy, tmp_path, name):
    job = deploy(run_root=tmp_path / name)
    pid = record(job, state="starting").pid
    word = f"--model-repository={tmp_path / name / 'models'}".encode()
    command = Path(f"/proc/{pid}/cmdline")
    until(lambda: word in command.read_bytes().split(b"\0"), what=f"{word!r} in the server's command")


def test_an_address_whose_port_is_used_is_passed_over(deploy):
    with socket.socket() as taken:
        first = own_address(last=1)
        taken.bind((first, 8001))
        taken.listen()
        job = deploy(cluster__local_address=first)
        assert record(job, state="starting").address == following(first)


def test_another_scheduler_sees_and_ends_the_job(deploy, tmp_path):
    job = deploy()
    record(job, state="starting")
    other = EmbeddedScheduler(run_root=tmp_path, first_address=job.farm.cluster.local_address)
    assert other.info(job.id).state is JobState.RUNNING
    other.cancel(job.id)
    assert other.info(job.id).state is JobState.CANCELLED


def test_a_job_that_vanished_is_a_failed_node(deploy):
    job = deploy()
    record(job, state="starting")
    for pid in session_members(session_of(job)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: job.scheduler.info(job.id).state is JobState.NODE_FAIL, what="NODE_FAIL")


def test_jobs_are_numbered_one_after_the_other(deploy):
    assert [deploy().id, deploy().id] == ["1", "2"]


def test_an_unknown_job_is_one_line_with_the_next_step(tmp_path):
    with pytest.raises(LaunchError, match=r"no job '42' in .*; list the jobs with 'ls"):
        farm.find_job(local_farm(tmp_path), "42")
    with pytest.raises(LaunchError, match="no job '42'"):
        EmbeddedScheduler(run_root=tmp_path, first_address="127.0.0.2").info("42")


def test_a_run_root_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    flags = {"site": "local", "run_root": str(tmp_path / "file" / "below")}
    with pytest.raises(LaunchError, match="cannot be made"):
        farm.deploy(resolve(flags=flags).farm)


@pytest.mark.slow
def test_a_farm_runs_on_a_machine_without_a_network(tmp_path):
    """As on an aeroplane: with the loopback device alone, getent finds no address, not even that of its own."""
    if os.geteuid() != 0:
        pytest.skip("a machine without a network needs root, which may make one")
    made = local_farm(tmp_path, job__nodes=2)
    first = made.cluster.local_address
    settings = tmp_path / "farm.toml"
    settings.write_text(
        f'site = "local"\nrun_root = "{tmp_path}"\ncluster.local_address = "{first}"\njob.nodes = 2\n'
        f'[server]\ntriton = "{FAKE_TRITON}"\nmodel_repository = "{made.server.model_repository}"\ndrain = 0\n'
    )
    lines = (
        "ip link set lo up",
        f"! getent ahostsv4 {first}",
        f"trap '{PROGRAM} stop --config {settings} 1' EXIT",
        f"{PROGRAM} deploy --config {settings} --wait 180",
        f"{PROGRAM} status --config {settings} 1 --json",
    )
    done = run(["unshare", "--net", "bash", "-ec", "\n".join(lines)], timeout=280)
    assert done.returncode == 0, done.complaint
    told = json.loads(done.stdout[done.stdout.index("[") : done.stdout.rindex("]") + 1])
    assert [server["address"] for server in told[0]["servers"]] == [first, following(first)]
    assert told[0]["ready"] == 2


def test_what_a_killed_server_unpacked_goes_and_nothing_of_others(deploy, monkeypatch):
    """Triton unpacks a packed environment to /tmp/python_env_XXXXXX, and has no time to remove it when it is killed."""
    monkeypatch.setenv("FAKE_TRITON", "unpack")
    before = set(Path("/tmp").glob("python_env_??????"))
    job, other = deploy(server__max_restarts=0), deploy()
    notes = [one.run_dir.records / f"{record(one, state='starting').server}.unpacked" for one in (job, other)]
    until(lambda: all(note.exists() and note.read_text() for note in notes), what="two folders")
    ours, theirs = (Path(note.read_text().strip()) for note in notes)
    assert ours.is_dir() and theirs.is_dir() and ours != theirs and not {ours, theirs} & before
    os.kill(record(job, state="starting").pid, signal.SIGKILL)
    record(job, state="gone")
    assert not ours.exists() and not notes[0].exists()
    assert theirs.is_dir() and before <= set(Path("/tmp").glob("python_env_??????"))
    farm.stop(other)
    assert not theirs.exists()
