"""What every balancer does: the contract of the protocol, held by each kind, and by the one that tests use instead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import grpc
import numpy as np
import psutil
import pytest
import requests
from balancers import RECORDING, answering, asked, free_listen, member
from fakes.running import fake_triton, free_port
from hostile_names import HOSTILE_FOLDERS
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import until

from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.fleet.balancer.balancers import BALANCERS, balancer_of, kind_of
from exatrkx_hpc.fleet.balancer.base import MEMBER_HEADER, Balancer, BalancerKind, Listen
from exatrkx_hpc.fleet.endpoint import (
    EndpointRecord,
    identity_at,
    point_latest,
    read_endpoint,
    remove_endpoint,
    write_endpoint,
)
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.work.inference.channel import MEMBER, Channel

Start = Callable[..., Balancer]


def installed(kind: BalancerKind) -> BalancerKind:
    try:
        kind.find()
    except MissingComponent as error:
        pytest.skip(str(error))
    return kind


#: The balancers that are programs.
PROGRAMS = [pytest.param(name, marks=pytest.mark.part) for name in BALANCERS]


@pytest.fixture(params=[*PROGRAMS, "recording"])
def kind(request: pytest.FixtureRequest) -> BalancerKind:
    """Every balancer, also the one that moves no request."""
    return installed({**BALANCERS, "recording": RECORDING}[request.param])


@pytest.fixture(params=PROGRAMS)
def real(request: pytest.FixtureRequest) -> BalancerKind:
    """Every balancer that moves requests."""
    return installed(BALANCERS[request.param])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a balancer of a kind in a folder; it is stopped at the end."""
    running: list[Balancer] = []

    def _start(
        kind: BalancerKind, members: Sequence[Member] = (), *, folder: Path | None = None, listen: Listen | None = None
    ) -> Balancer:
        running.append(kind.make(folder or tmp_path / "balancer", listen or free_listen()))
        running[-1].start(members)
        return running[-1]

    yield _start
    for balancer in running:
        balancer.stop(grace=1)


def url(balancer: Balancer) -> str:
    return f"http://{balancer.listen.http}"


def processes_of(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


def test_it_lives_from_its_start_to_its_stop(kind, start):
    balancer = kind.make(Path("unused"), free_listen())
    assert not balancer.alive()
    balancer = start(kind, [member()])
    assert balancer.alive() and balancer.name == kind.program
    balancer.update([member(), member("nid002-0", "10.0.0.2")])
    balancer.update([])
    assert balancer.alive()
    balancer.stop(grace=1)
    assert not balancer.alive()
    balancer.stop(grace=1)
    balancer.start([])
    assert balancer.alive()


@pytest.mark.parametrize("which", ["grpc_port", "http_port"])
def test_a_port_in_use_is_one_line_with_the_next_step(kind, start, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = replace(free_listen(), **{which: taken.getsockname()[1]})
        with pytest.raises(EndpointError, match=rf"port {getattr(listen, which)} of 127.0.0.1.*balancer\.grpc_port"):
            start(kind, listen=listen)


def test_requests_go_to_every_member_and_follow_them(real, start):
    with answering("one", "127.0.6.1") as one, answering("two", "127.0.6.2") as two:
        balancer = start(real, [one])
        assert asked(url(balancer)) == {"one"}
        balancer.update([one, two])
        until(lambda: asked(url(balancer)) == {"one", "two"}, what="both members")
        balancer.update([two])
        until(lambda: asked(url(balancer)) == {"two"}, what="the second member alone")


def test_without_members_a_request_is_refused_at_once(real, start):
    assert asked(url(start(real)), 1) <= {"502", "503"}


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_any_folder_name_will_do(real, start, tmp_path, name):
    with answering("one", "127.0.6.1") as one:
        assert asked(url(start(real, [one], folder=tmp_path / name)), 1) == {"one"}


def test_a_refused_update_leaves_the_members_before_it(real, start):
    with answering("one", "127.0.6.1") as one:
        balancer = start(real, [one])
        with pytest.raises(EndpointError):
            balancer.update([member(address="no such host !")])
        assert balancer.alive()
        assert asked(url(balancer), 1) == {"one"}


def first_answer(server: str) -> str:
    """The header of the first answer to a client that never asks twice."""
    request = service_pb2.ModelInferRequest(model_name="exatrkx")
    request.inputs.add(name="FEATURES", datatype="FP32", shape=[3, 3])
    request.raw_input_contents.append(np.zeros((3, 3), dtype=np.float32).tobytes())
    with grpc.insecure_channel(server, options=[("grpc.enable_retries", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        _, call = stub.ModelInfer.with_call(request, timeout=10)
        return dict(call.initial_metadata())[MEMBER_HEADER]


def as_clients_read_it(server: str) -> str:
    async def ask() -> str:
        channel = Channel(server)
        try:
            hits = {"FEATURES": np.zeros((3, 3), dtype=np.float32)}
            return (await channel.infer("exatrkx", hits, "LABELS", timeout=10)).member
        finally:
            await channel.close()

    return asyncio.run(ask())


def test_an_answer_names_the_server_that_gave_it(real, start, tmp_path):
    """Also when servers that cannot be reached were asked before it, of which the client notices nothing."""
    with fake_triton() as fake:
        here = member("here-0", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        dead = [member(f"dead-{n}", "127.0.6.9", grpc_port=free_port()) for n in range(2)]
        header = first_answer(start(real, [*dead, here], folder=tmp_path / "one").listen.grpc)
        assert header.rpartition(", ")[2] == here.grpc
        assert as_clients_read_it(start(real, [*dead, here], folder=tmp_path / "two").listen.grpc) == here.grpc
    assert MEMBER == MEMBER_HEADER


def test_a_killed_monitors_balancer_is_replaced(real, start, tmp_path):
    with answering("one", "127.0.6.1") as one:
        left = start(real, [one])
        second = start(real, [one], listen=left.listen)
        assert second.alive()
        until(lambda: not left.alive(), what="the end of the first")
        assert asked(url(second), 1) == {"one"}


def test_a_killed_balancer_is_noticed_and_replaced(real, start, tmp_path):
    """Its worker processes may live on and keep the port."""
    with answering("one", "127.0.6.1") as one:
        balancer = start(real, [one])
        os.kill(min(processes_of(tmp_path / "balancer")), signal.SIGKILL)
        until(lambda: not balancer.alive(), what="its end")
        balancer.start([one])
        assert balancer.alive()
        assert asked(url(balancer), 1) == {"one"}


def test_a_balancer_that_was_left_serves_on_and_is_adopted(real, start, tmp_path):
    """The next monitor has another object, and finds it by its folder."""
    folder = tmp_path / "balancer"
    with answering("one", "127.0.6.1") as one, answering("two", "127.0.6.2") as two:
        first = start(real, [one])
        pid, identity = first.pid, first.identity
        first.leave()
        assert not first.alive()
        assert asked(url(first), 2) == {"one"}
        assert real.left(folder) is not None
        second = real.make(folder, first.listen)
        assert not second.alive()
        assert second.adopt()
        try:
            assert (second.alive(), second.pid, second.identity) == (True, pid, identity)
            second.update([two])
            until(lambda: asked(url(second), 1) == {"two"}, what="the new member")
        finally:
            second.stop(grace=1)
        assert not second.alive() and processes_of(folder) == []
        assert real.left(folder) is None


def test_nothing_else_is_adopted(real, start, tmp_path):
    """Neither a balancer on other ports, nor workers without their master, nor another folder's."""
    folder = tmp_path / "balancer"
    balancer = start(real)
    assert not real.make(folder, free_listen()).adopt()
    assert not real.make(tmp_path / "other", balancer.listen).adopt()
    os.kill(balancer.pid or 0, signal.SIGKILL)
    until(lambda: not balancer.alive(), what="its end")
    assert real.left(folder) is None
    assert not real.make(folder, balancer.listen).adopt()


def test_a_process_that_got_the_pid_of_a_balancer_is_not_adopted(real, start, tmp_path):
    folder = tmp_path / "balancer"
    balancer = start(real)
    note = folder / "running.json"
    facts = json.loads(note.read_text())
    try:
        for changed in ({"started": facts["started"] + 1}, {"boot": "another"}, {"host": "another"}):
            note.write_text(json.dumps({**facts, **changed}))
            assert not real.make(folder, balancer.listen).adopt()
        note.write_text("{")
        assert not real.make(folder, balancer.listen).adopt()
    finally:
        note.write_text(json.dumps(facts))


def test_the_note_of_a_balancer_on_another_machine_is_kept(real, start, tmp_path):
    """Its monitor has taken over the job; this one stops."""
    balancer = start(real)
    note = tmp_path / "balancer" / "running.json"
    facts = {**json.loads(note.read_text()), "host": "another", "instance": "0123456789ab"}
    note.write_text(json.dumps(facts))
    balancer.stop(grace=1)
    assert json.loads(note.read_text()) == facts
    assert processes_of(note.parent) == []


def test_each_start_is_another_instance_of_the_same_job(real, start):
    balancer = start(real)
    first = balancer.identity
    balancer.stop(grace=1)
    balancer.start([])
    assert balancer.identity != first and balancer.identity.same_job(first)
    assert identity_at(balancer.listen.http) == str(balancer.identity)


@contextlib.contextmanager
def slow() -> Iterator[tuple[Member, Event, Event]]:
    """A server that answers its first request when it may, and tells when it was asked."""
    was_asked, may_answer = Event(), Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            first, _ = not was_asked.is_set(), was_asked.set()
            if first:
                may_answer.wait(30)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"late")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.6.3", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield member("slow-0", "127.0.6.3", http_port=server.server_port), was_asked, may_answer
    finally:
        may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_running_request_ends_where_it_is_after_an_update(real, start):
    with slow() as (late, was_asked, may_answer), ThreadPoolExecutor(1) as pool:
        balancer = start(real, [late])
        answer = pool.submit(requests.get, f"{url(balancer)}/v2", timeout=30)
        assert was_asked.wait(20)
        balancer.update([])
        until(lambda: asked(url(balancer), 1) <= {"502", "503"}, what="the new members")
        may_answer.set()
        assert answer.result(30).text == "late"


def test_stop_lets_a_running_request_finish(real, start):
    with slow() as (late, was_asked, may_answer), ThreadPoolExecutor(2) as pool:
        balancer = start(real, [late])
        answer = pool.submit(requests.get, f"{url(balancer)}/v2", timeout=30)
        assert was_asked.wait(20)
        stopped = pool.submit(balancer.stop, grace=20)
        until(lambda: refused(balancer.listen), what="a port that takes no more requests")
        may_answer.set()
        assert answer.result(30).text == "late"
        stopped.result(30)
        assert not balancer.alive()


def refused(listen: Listen) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((listen.host, listen.http_port)) != 0


def test_stop_leaves_no_process(real, start, tmp_path):
    balancer = start(real)
    assert processes_of(tmp_path / "balancer")
    balancer.stop(grace=1)
    assert processes_of(tmp_path / "balancer") == []


def test_a_farm_gets_free_ports_where_it_asks_for_any(tmp_path):
    section = BalancerSection(host="127.0.0.1", grpc_port=0, http_port=9190, worker_processes=3)
    installed(kind_of(section))
    listen = balancer_of(section, tmp_path).listen
    assert (listen.http, listen.worker_processes) == ("127.0.0.1:9190", 3)
    assert listen.grpc_port not in (0, 9190)


def test_the_next_endpoint_of_a_job_or_of_its_farm_has_the_ports_of_the_last_one(tmp_path):
    section = BalancerSection(host="127.0.0.1", grpc_port=0, http_port=0)
    installed(kind_of(section))
    ports = {job: [free_port(), free_port()] for job in ("7", "8")}
    for job, (for_grpc, for_http) in ports.items():
        run_dir = FarmDir(tmp_path).job(job)
        run_dir.path.mkdir()
        facts = {"job": job, "grpc": f"h:{for_grpc}", "http": f"h:{for_http}", "prometheus": "", "metrics": {}}
        write_endpoint(run_dir, EndpointRecord(**facts, ready=0, monitor_pid=os.getpid(), updated=0))
        point_latest(run_dir)
        remove_endpoint(run_dir)
        assert read_endpoint(run_dir) is None

    def chosen(job: str) -> list[int]:
        listen = balancer_of(section, FarmDir(tmp_path).job(job).balancer("nginx")).listen
        return [listen.grpc_port, listen.http_port]

    assert {job: chosen(job) for job in ("7", "8", "9")} == {**ports, "9": ports["8"]}


def test_clients_elsewhere_are_told_this_machines_name():
    everywhere = Listen(host="0.0.0.0", grpc_port=1, http_port=2)
    assert (everywhere.grpc, everywhere.http) == (f"{socket.getfqdn()}:1", f"{socket.getfqdn()}:2")
