"""What every balancer does: the contract of the protocol, held by each kind, and by the one that tests use instead."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from balancers import RECORDING, answering, asked, free_listen, member
from fakes.running import fake_triton, free_port
from test_local import HOSTILE
from waiting import until

from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.fleet.balancer.balancers import BALANCERS, balancer_of, kind_of
from exatrkx_hpc.fleet.balancer.base import MEMBER_HEADER, Balancer, BalancerKind, Listen
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.work.inference.channel import MEMBER, Channel

Start = Callable[..., Balancer]


def installed(kind: BalancerKind) -> BalancerKind:
    try:
        kind.find()
    except MissingComponent as error:
        pytest.skip(str(error))
    return kind


@pytest.fixture(params=[*BALANCERS, "recording"])
def kind(request: pytest.FixtureRequest) -> BalancerKind:
    """Every balancer, also the one that moves no request."""
    return installed({**BALANCERS, "recording": RECORDING}[request.param])


@pytest.fixture(params=list(BALANCERS))
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


@pytest.mark.parametrize("name", HOSTILE)
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


def test_an_answer_names_the_server_that_gave_it(real, start):
    """Also after a server that cannot be reached was tried first; and as the clients read it."""
    with fake_triton() as fake:
        port = int(fake.server.rpartition(":")[2])
        here = member("here-0", "127.0.0.1", grpc_port=port)
        dead = [member(f"dead-{n}", "127.0.6.9", grpc_port=free_port()) for n in range(2)]
        balancer = start(real, [*dead, here])

        async def members() -> set[str]:
            channel = Channel(balancer.listen.grpc)
            try:
                hits = {"FEATURES": np.zeros((3, 3), dtype=np.float32)}
                return {(await channel.infer("exatrkx", hits, "LABELS", timeout=10)).member for _ in range(6)}
            finally:
                await channel.close()

        assert asyncio.run(members()) == {here.grpc}
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


def test_clients_elsewhere_are_told_this_machines_name():
    everywhere = Listen(host="0.0.0.0", grpc_port=1, http_port=2)
    assert (everywhere.grpc, everywhere.http) == (f"{socket.getfqdn()}:1", f"{socket.getfqdn()}:2")
