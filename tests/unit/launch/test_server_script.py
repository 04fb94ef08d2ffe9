"""server.sh, run for real with a fake tritonserver: ports, restarts, words to one server, causes of failures."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from addresses import own_address
from local_farms import local_farm
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.process import Child, spawn
from exatrkx_hpc.fleet.members.probe import is_ready
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.launch.plan import Tool, make_plan
from exatrkx_hpc.launch.render import render_server
from exatrkx_hpc.launch.run_dir import RunDir

#: The log of a Triton whose repository needs a backend that the image lacks.
NO_BACKEND = """\
W1127 09:32:21.001 7 pinned_memory_manager.cc:271] Unable to allocate pinned system memory
E1127 09:32:21.200 7 model_lifecycle.cc:642] "failed to load 'gnn' version 1: Invalid argument: unable to find backend \
library for backend 'onnxruntime', try specifying runtime on the model configuration."
E1127 09:32:21.603 7 main.cc:245] "error: creating server: Internal - failed to load all models"
"""
OUT_OF_MEMORY = """\
I1127 09:32:21.200 7 model_lifecycle.cc:472] loading: gnn:1
E1127 09:32:21.200 7 model_lifecycle.cc:642] failed to load 'gnn' version 1: Internal: CUDA error: out of "memory" \\ é
"""
TAKEN = """\
E1127 09:32:21.599 7 chttp2_server.cc:1060] UNKNOWN:No address added out of total 1 resolved for '{grpc}'
E1127 09:32:21.603 7 main.cc:245] "failed to start GRPC service: Unavailable - Socket '{grpc}' already in use "
"""


@dataclass(frozen=True)
class Server:
    """A running server.sh and its run directory."""

    child: Child
    run_dir: RunDir

    @property
    def record(self) -> ServerRecord | None:
        return next(iter(read_records(self.run_dir)), None)

    def reaches(self, state: str, *, starts: int = 1, note: str = "") -> ServerRecord:
        """Wait for a record of this state and start whose note has these words."""

        def found() -> ServerRecord | None:
            record = self.record
            right = record and (record.state, record.starts) == (state, starts) and note in record.note
            return record if right else None

        return until(found, what=f"{state} of start {starts} with {note!r}")

    def hears(self, word: str, server: str = "") -> None:
        """Write a word to this server, and wait until it was heard; one without a record has the name `server`."""
        file = self.run_dir.path / "stop.d" / (server or self.record.server)
        file.write_text(f"{word}\n")
        until(lambda: not file.exists(), what=f"a server that hears {word}")


@pytest.fixture
def address() -> str:
    """The address of the pretend node of this test."""
    return own_address(last=1)


@pytest.fixture
def start(tmp_path: Path, address: str) -> Iterator[Callable[..., Server]]:
    """Run server.sh of a job as Slurm runs it on a node; what still runs at the end is ended."""
    servers: list[Server] = []

    def call(job: int = 42, *, node: str = "", environment: dict[str, str] | None = None, **flags: object) -> Server:
        made = local_farm(tmp_path, **{"server__max_pause": 300, "server__give_up_after": 600, **flags})
        plan = make_plan(made, tool=Tool(triton=made.server.triton))
        run_dir = RunDir(tmp_path / str(job))
        run_dir.path.mkdir()
        run_dir.server_script.write_text(render_server(plan))
        env = {
            **os.environ,
            "SLURM_JOB_ID": str(job),
            "SLURMD_NODENAME": node or address,
            **(environment or {}),
        }
        argv = ["bash", str(run_dir.server_script), str(run_dir)]
        servers.append(Server(spawn(argv, log=tmp_path / f"{job}.log", env=env), run_dir))
        return servers[-1]

    yield call
    for server in servers:
        if server.child.returncode() is None:
            server.child.send(signal.SIGUSR1)
            server.child.wait(20)
        server.child.stop(grace=0)


def fails(tmp_path: Path, log: str, verb: str = "fails") -> dict[str, str]:
    """Return the variables of a fake Triton that prints this log and ends."""
    (tmp_path / "log.txt").write_text(log)
    return {"FAKE_TRITON": f"{verb}:{tmp_path / 'log.txt'}"}


def test_a_second_job_on_a_node_takes_the_next_free_ports(start):
    first = start(42).reaches("starting")
    until(lambda: is_ready(first, 5), what="the first job's server")
    second = start(43).reaches("starting")
    until(lambda: is_ready(second, 5), what="the second job's server")
    assert first.address == second.address
    assert (first.http_port, first.grpc_port, first.metrics_port) == (8000, 8001, 8002)
    assert (second.http_port, second.grpc_port, second.metrics_port) == (8010, 8011, 8012)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_all_three_ports_are_looked_at(start, address, offset):
    with socket.socket() as taken:
        taken.bind((address, 8000 + offset))
        taken.listen()
        assert start().reaches("starting").http_port == 8010


def test_servers_of_one_job_pass_over_each_others_ports(start, address):
    with socket.socket() as taken:
        taken.bind((address, 8001))
        taken.listen()
        assert start(server__servers_per_node=3).reaches("starting").http_port == 8030


def test_a_port_taken_after_the_choice_counts_as_no_failure(start, tmp_path):
    server = start(server__max_restarts=0, environment=fails(tmp_path, TAKEN, "fails-once"))
    second = server.reaches("starting", starts=2)
    assert second.http_port != 8000
    until(lambda: is_ready(second, 5), what="the server at its other ports")


def test_a_restart_keeps_the_ports(start):
    server = start()
    first = server.reaches("starting")
    until(lambda: is_ready(first, 5), what="the server")
    os.kill(first.pid, signal.SIGKILL)
    assert server.reaches("starting", starts=2).http_port == first.http_port


def test_a_server_that_hangs_is_ended_and_started_by_a_word(start):
    server = start(server__exit_timeout=1, server__max_restarts=0)
    hung = server.reaches("starting")
    os.kill(hung.pid, signal.SIGSTOP)
    server.hears("restart")
    again = server.reaches("starting", starts=2)
    assert not Path(f"/proc/{hung.pid}").exists()
    until(lambda: is_ready(again, 5), what="the server again")


def test_a_word_between_two_starts_does_not_use_up_the_next_one(start, tmp_path, address):
    """The first word comes while the script prepares the start, which a slow program makes long."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "stat").write_text(f"""#!/bin/sh
: >"{tmp_path}/prepares"; sleep 2; exec {shutil.which("stat")} "$@"
""")
    (slow / "stat").chmod(0o755)
    server = start(environment={"PATH": f"{slow}:{os.environ['PATH']}"})
    until((tmp_path / "prepares").exists, what="the preparation of the first start")
    server.hears("restart", server=f"{address}-0")
    first = server.reaches("starting")
    until(lambda: is_ready(first, 5), what="the server")
    server.hears("restart")
    until(lambda: is_ready(server.reaches("starting", starts=2), 5), what="the server again")


def test_a_restart_by_a_word_leaves_the_balancer_first(start):
    server = start(server__drain=600)
    first = server.reaches("starting")
    server.hears("restart")
    server.reaches("draining", note="then starts again")
    assert Path(f"/proc/{first.pid}").exists()


@pytest.mark.parametrize(("word", "note"), [("drain", "drained"), ("halt", "stopped")])
def test_a_word_ends_one_server(start, word, note):
    server = start()
    server.reaches("starting")
    server.hears(word)
    server.reaches("gone", note=note)
    assert server.child.wait(20) == 0


def test_pauses_grow_and_a_word_cuts_them_short(start):
    server = start(environment={"FAKE_TRITON": "exit:7"})
    server.reaches("gone", starts=1, note="ended with status 7; starts again in 2 s")
    server.reaches("gone", starts=2, note="starts again in 4 s")
    server.reaches("gone", starts=3, note="starts again in 8 s")
    server.hears("restart")
    server.reaches("gone", starts=4)


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGUSR1])
def test_a_server_that_pauses_ends_at_once(start, signal_):
    """Not after the pause, which may be five minutes."""
    server = start(server__drain=1, environment={"FAKE_TRITON": "exit:7"})
    server.reaches("gone", starts=3, note="starts again in 8 s")
    server.child.send(signal_)
    assert server.child.wait(6) == 0


def test_a_server_is_not_given_up_while_its_cause_may_pass(start):
    server = start(server__max_restarts=1, server__max_pause=1, environment={"FAKE_TRITON": "exit:7"})
    server.reaches("gone", starts=4, note="starts again in 1 s")
    assert server.child.returncode() is None


def test_a_server_that_was_ready_is_not_given_up(start):
    server = start(server__max_restarts=1, server__give_up_after=0, server__max_pause=1)
    for number in (1, 2, 3):
        record = server.reaches("starting", starts=number)
        until((server.run_dir.records / f"{record.server}.answered").exists, what="its answer")
        os.kill(record.pid, signal.SIGKILL)
    server.reaches("starting", starts=4)


def test_a_missing_backend_is_named_and_given_up_without_patience(start, tmp_path):
    server = start(server__max_restarts=1, server__max_pause=1, environment=fails(tmp_path, NO_BACKEND))
    note = server.reaches("gone", starts=2, note="gave up").note
    assert "unable to find backend library for backend 'onnxruntime'" in note
    assert server.child.wait(20) == 0


def test_the_cause_is_in_the_record_as_plain_text(start, tmp_path):
    server = start(environment=fails(tmp_path, OUT_OF_MEMORY))
    note = server.reaches("gone", note="starts again in").note
    assert "failed to load 'gnn' version 1: Internal: CUDA error: out of memory" in note
    assert note.isascii()


def programs(tmp_path: Path, **texts: str) -> dict[str, str]:
    """Return variables with fake programs first on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAKE_TRITON": "exit:7"}


def test_a_name_that_resolves_to_the_loopback_device_is_told_and_not_used(start, tmp_path):
    fakes = programs(tmp_path, getent="echo 127.0.1.1 STREAM nid1", hostname="echo 127.0.1.1 10.9.8.7 172.17.0.1")
    record = start(node="nid1", environment=fakes, server__triton="sleep").reaches("starting", note="127.0.1.1")
    assert record.address == "10.9.8.7"
    assert "nid1 resolves to 127.0.1.1 on the node, so 10.9.8.7 is used" in record.note


def test_the_loopback_address_is_used_where_there_is_no_other_and_told(start, tmp_path):
    fakes = programs(tmp_path, getent="echo 127.0.1.1 STREAM nid1", hostname="echo 127.0.1.1")
    record = start(node="nid1", environment=fakes).reaches("starting", note="only this node reaches")
    assert record.address == "127.0.1.1"


def test_the_second_answer_counts_where_the_first_is_the_loopback_device(start, tmp_path):
    fakes = programs(tmp_path, getent="printf '127.0.1.1 STREAM nid1\\n10.9.8.7 STREAM\\n'")
    assert start(node="nid1", environment=fakes).reaches("starting").address == "10.9.8.7"


def test_a_key_that_could_not_be_written_whole_is_no_key(start, tmp_path):
    """As on a full disk: a short key would be the servers' for good, and the balancer refuses it."""
    server = start(environment=programs(tmp_path, od="echo 1234\nexit 1"))
    server.reaches("gone", starts=0, note="gave up: the node cannot write or read secrets/server-key")
    assert not list((tmp_path / "secrets").iterdir())


def test_a_node_with_ipv6_alone_is_refused_in_one_line(start, tmp_path):
    fakes = programs(tmp_path, getent='[ "$1" = ahostsv4 ] || echo fd00::7 STREAM nid1')
    server = start(node="nid1", environment=fakes)
    note = server.reaches("gone", starts=0).note
    assert "nid1 has only the IPv6 address fd00::7" in note and "cluster.host_suffix" in note


def test_one_server_that_gave_up_leaves_the_job_running(tmp_path, monkeypatch, address):
    monkeypatch.setenv("FAKE_TRITON", "exit:7")
    monkeypatch.setenv("FAKE_TRITON_AT", address)
    job = farm.deploy(local_farm(tmp_path, job__nodes=2, server__max_restarts=0, cluster__local_address=address))
    try:
        records = lambda: {record.node: record for record in read_records(job.run_dir)}  # noqa: E731
        sick = until(lambda: (r := records().get(address)) and "gave up" in r.note and r, what="a server given up")
        well = until(lambda: next((r for r in records().values() if r.server != sick.server), None), what="the other")
        until(lambda: is_ready(well, 5), what="the other server")
        assert job.scheduler.info(job.id).state is JobState.RUNNING
        (job.run_dir.path / "stop.d" / well.server).write_text("drain\n")
        until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job")
        assert job.scheduler.info(job.id).state is JobState.COMPLETED
    finally:
        farm.stop(job, drain=False)


def test_a_user_restarts_and_ends_one_server_of_a_job(tmp_path, address):
    job = farm.deploy(local_farm(tmp_path, job__nodes=2, cluster__local_address=address))
    try:
        one = until(lambda: len(records := read_records(job.run_dir)) == 2 and records[0], what="two servers")

        def now() -> ServerRecord:
            return next(record for record in read_records(job.run_dir) if record.server == one.server)

        farm.ask_server(job, one.server, restart=True)
        until(lambda: (now().state, now().starts) == ("starting", 2), what="its second start")
        farm.ask_server(job, one.server)
        until(lambda: job.run_dir.has_ended(one.server), what="its end")
        assert job.scheduler.info(job.id).state is JobState.RUNNING
        with pytest.raises(LaunchError, match=r"has ended \(drained\); deploy another job"):
            farm.ask_server(job, one.server)
        with pytest.raises(LaunchError, match="has no server 'nid9-0'; 'exatrkx-hpc status"):
            farm.ask_server(job, "nid9-0")
    finally:
        farm.stop(job, drain=False)
