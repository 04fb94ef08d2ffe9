"""nginx as the balancer: its configuration as text, and what it alone does. What all do is in test_balancers.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from balancers import answering, free_listen, member, silent
from fakes.running import fake_triton, free_port
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import until

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ownership import ENDPOINT_HEADER
from exatrkx_hpc.fleet.balancer import complaints as complaints_module
from exatrkx_hpc.fleet.balancer import nginx as nginx_module
from exatrkx_hpc.fleet.balancer.base import MEMBER_HEADER, Listen
from exatrkx_hpc.fleet.balancer.limits import limits_of
from exatrkx_hpc.fleet.balancer.nginx import Nginx, parse_version, render_main, render_upstream
from exatrkx_hpc.fleet.members.reconcile import Member

LISTEN = Listen(host="127.0.0.1", grpc_port=9191, http_port=9190, farm="exatrkx-0a1b2c3d", job="42")


@pytest.mark.parametrize(("version", "name"), [((1, 22, 1), "old"), ((1, 25, 1), "new")])
def test_the_main_configuration_is_as_agreed(golden, version, name):
    limits = limits_of(2, open_files=524288)
    golden(f"nginx.{name}.conf", render_main(LISTEN, limits, instance="0123456789ab", version=version))


def test_the_upstream_is_as_agreed(golden):
    limits = limits_of(2, open_files=524288)
    golden("upstream.conf", render_upstream([member("nid001-0"), member("nid002-0", "10.0.0.2")], limits))
    golden("upstream.empty.conf", render_upstream([], limits))


@pytest.mark.parametrize(
    ("text", "version"),
    [("nginx version: nginx/1.22.1\n", (1, 22, 1)), ("nginx version: nginx/1.31.3 (x)", (1, 31, 3)), ("?", ())],
)
def test_versions(text, version):
    assert parse_version(text) == version


def test_a_refused_configuration_is_not_kept(nginx, tmp_path):
    balancer = Nginx(tmp_path, free_listen())
    try:
        balancer.start([])
        good = (tmp_path / "upstream.conf").read_text()
        with pytest.raises(EndpointError, match="keeps the last valid one"):
            balancer.update([member(address="no such host !")])
        assert (tmp_path / "upstream.conf").read_text() == good
    finally:
        balancer.stop(grace=1)


# What requests meet, in the words of the templates


@pytest.fixture
def start(nginx, tmp_path) -> Iterator[Callable[..., Listen]]:
    """Start nginx for these members; it is stopped at the end."""
    running: list[Nginx] = []

    def _start(*members: Member, **settings: Any) -> Listen:
        running.append(Nginx(tmp_path / "nginx", replace(free_listen(), **settings)))
        running[-1].start(members)
        return running[-1].listen

    yield _start
    for one in running:
        one.stop(grace=1)


@contextlib.contextmanager
def triton(name: str) -> Iterator[Member]:
    with fake_triton("--member", name) as fake:
        yield member(name, "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))


@contextlib.contextmanager
def stub_of(server: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """A client that never asks twice by itself, with a connection of its own."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server, options=options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(server: str, hits: int = 3) -> str:
    """Return who answered an event of so many hits; raises RpcError."""
    request = service_pb2.ModelInferRequest(model_name="exatrkx")
    request.inputs.add(name="FEATURES", datatype="FP32", shape=[hits, 3])
    request.raw_input_contents.append(np.zeros((hits, 3), dtype=np.float32).tobytes())
    with stub_of(server) as stub:
        _, call = stub.ModelInfer.with_call(request, timeout=30)
        return dict(call.initial_metadata())[MEMBER_HEADER]


def headers(error: grpc.RpcError) -> dict[str, str]:
    """The headers of an answer without a message; gRPC calls them trailers."""
    return {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}


def test_a_request_that_was_sent_is_gone_with_its_server_and_the_next_one_is_not(start):
    """Who asks again finds another server, because the one that failed has a while without requests."""
    with silent("127.0.6.1") as (dying, taken), triton("well") as well:
        listen = start(dying, well)
        with pytest.raises(grpc.RpcError) as lost:
            infer(listen.grpc)
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        assert headers(lost.value)[MEMBER_HEADER] == dying.grpc
        assert {infer(listen.grpc) for _ in range(6)} == {well.grpc}
        assert len(taken) == 1


def test_over_http_a_request_without_a_body_is_asked_of_another(start):
    with silent("127.0.6.1") as (dying, taken), answering("well", "127.0.6.2") as well:
        listen = start(dying, well)
        assert {requests.post(f"http://{listen.http}/v2", timeout=30).text for _ in range(4)} == {"well"}
        assert taken


def test_three_servers_are_tried_and_no_more(start):
    with triton("well") as well:
        listen = start(*(member(f"dead-{n}", "127.0.6.9", grpc_port=free_port()) for n in range(3)), well)
        with pytest.raises(grpc.RpcError, match="no server of the farm could take the request"):
            infer(listen.grpc)
        assert infer(listen.grpc) == well.grpc


def test_without_servers_a_client_is_told_in_words_of_grpc(start):
    with pytest.raises(grpc.RpcError) as refused:
        infer(start().grpc)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "no server of the farm could take the request"
    assert headers(refused.value)[ENDPOINT_HEADER].startswith("exatrkx/0/")


def test_a_server_that_cannot_be_reached_in_time_is_told_in_words_of_grpc(start):
    """Its queue of connections is full, so that the next one is not even refused."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.6.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        listen = start(member("full", "127.0.6.1", grpc_port=full.getsockname()[1]))
        with pytest.raises(grpc.RpcError) as refused:
            infer(listen.grpc)
        assert headers(refused.value)[MEMBER_HEADER] == "{}:{}".format(*full.getsockname())
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.value.details() == "no server of the farm answered in time"


def test_large_events_pass(start):
    with triton("well") as well:
        assert infer(start(well).grpc, hits=500_000) == well.grpc


def test_statistics_are_all_of_one_server(start):
    with triton("one") as one, triton("two") as two:
        listen = start(one, two)
        said = set()
        for _ in range(6):
            with stub_of(listen.grpc) as stub:
                answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=30)
                said.add(answer.model_stats[0].name)
    assert len(said) == 1


# Many members, long requests, few files


def many(count: int) -> list[Member]:
    return [member(f"nid{n:06}-0", f"127.7.{n // 250}.{n % 250 + 1}") for n in range(count)]


@pytest.mark.parametrize("count", [300, 1200, 4096])
def test_the_list_of_members_grows_and_shrinks_in_a_running_nginx(nginx, tmp_path, count):
    """A zone of another size is a new one at a reload; nginx does not refuse it."""
    with answering("well", "127.0.6.2") as well:
        balancer = Nginx(tmp_path, free_listen())
        try:
            balancer.start([well])
            pid = balancer.pid
            balancer.update(many(count))
            until(lambda: well.http not in served(balancer), what="the new members")
            balancer.update([well])
            until(lambda: served(balancer) == well.http, what="the one member")
            assert (balancer.alive(), balancer.pid, balancer.warnings()) == (True, pid, ())
        finally:
            balancer.stop(grace=1)


def test_a_large_error_log_is_put_aside_and_nginx_writes_a_new_one(nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(complaints_module, "_LARGE", 100)
    log, older = tmp_path / "error.log", tmp_path / "error.log.1"
    balancer = Nginx(tmp_path, free_listen())
    try:
        balancer.start([member("dead", "127.0.6.9", http_port=free_port())])
        written = [""]

        def line() -> bool:
            requests.get(f"http://{balancer.listen.http}/v2", timeout=30)
            return log.exists() and log.stat().st_size > 100

        for _ in range(2):
            until(line, what="a line of a request")
            written.append(log.read_text())
            balancer.warnings()
            assert older.read_text().startswith(written[-1])
        assert len(set(written)) == 3
    finally:
        balancer.stop(grace=1)


def test_after_an_update_no_request_meets_the_members_before_it(nginx, tmp_path):
    with answering("one", "127.0.6.1") as one, answering("two", "127.0.6.2") as two:
        balancer = Nginx(tmp_path, replace(free_listen(), worker_processes=2))
        try:
            balancer.start([one])
            for now in (two, one, two, one):
                balancer.update([now])
                assert {served(balancer) for _ in range(4)} == {now.http}
        finally:
            balancer.stop(grace=1)


def served(balancer: Nginx) -> str:
    """Who answered over HTTP, and who was tried before."""
    with requests.get(f"http://{balancer.listen.http}/v2", timeout=30) as answer:
        return answer.headers.get(MEMBER_HEADER, "")


def test_nothing_is_reloaded_without_a_change(nginx, tmp_path, monkeypatch):
    balancer = Nginx(tmp_path, free_listen())
    try:
        balancer.start(many(3))
        monkeypatch.setattr(nginx_module, "run", lambda *_, **__: pytest.fail("it was checked again"))
        balancer.update(many(3))
    finally:
        balancer.stop(grace=1)


@pytest.mark.parametrize(("after_limit", "answers"), [(30, True), (-33, False)])
def test_a_request_outlives_the_reloads_during_it(start, tmp_path, monkeypatch, after_limit, answers):
    """The old workers live longer than any request; the second case is the remedy off: they live for a second."""
    monkeypatch.setattr(nginx_module, "_AFTER_LIMIT", after_limit)
    balancer = Nginx(tmp_path, replace(free_listen(), request_timeout=4))
    with fake_triton("--delay", "4") as fake, ThreadPoolExecutor(1) as pool:
        slow = member("slow", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        try:
            balancer.start([slow])
            answer = pool.submit(infer, balancer.listen.grpc)
            until(lambda: connected(slow), what="the request at its server")
            for count in range(1, 6):
                balancer.update([slow, *many(count)])
            if answers:
                assert answer.result(30) == slow.grpc
            else:
                with pytest.raises(grpc.RpcError):
                    answer.result(30)
        finally:
            balancer.stop(grace=1)


def connected(server: Member) -> bool:
    """Whether the server has a connection."""
    port = f":{server.record.grpc_port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(port) and row[3] == "01" for row in rows)


def test_an_nginx_without_connections_answers_in_words_of_grpc_and_says_so(start, nginx, tmp_path, monkeypatch):
    """nginx itself answers 500, which a gRPC client would take for UNKNOWN, a fault of the event."""
    monkeypatch.setattr(nginx_module, "most_open_files", lambda: 40)
    balancer = Nginx(tmp_path, free_listen())
    with fake_triton("--delay", "1") as fake, ThreadPoolExecutor(24) as pool:
        balancer.start([member("well", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))])
        try:
            answers = [pool.submit(infer, balancer.listen.grpc) for _ in range(24)]
            codes = {error.code() for answer in answers if isinstance(error := answer.exception(), grpc.RpcError)}
            assert codes == {grpc.StatusCode.UNAVAILABLE}
            until(lambda: any("has no connection left" in line for line in balancer.warnings()), what="its warning")
            assert balancer.warnings() == ()
        finally:
            balancer.stop(grace=1)
