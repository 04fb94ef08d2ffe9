"""The balancer: its configuration as text, checked by nginx itself, and a running nginx that follows members."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
from test_local import HOSTILE
from test_membership import record
from waiting import until

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.fleet.balancer.nginx import Balancer, BalancerPlan, parse_version, render_main, render_upstream
from exatrkx_hpc.fleet.members.reconcile import Member

PLAN = BalancerPlan(host="127.0.0.1", grpc_port=9191, http_port=9190)


def member(name: str = "nid001-0", address: str = "10.0.0.1", **ports: int) -> Member:
    return Member(record=record(name, address=address, **ports), state="ready", note="answers")


@pytest.mark.parametrize(("version", "name"), [((1, 22, 1), "old"), ((1, 25, 1), "new")])
def test_the_main_configuration_is_as_agreed(golden, version, name):
    golden(f"nginx.{name}.conf", render_main(PLAN, version=version))


def test_the_upstream_is_as_agreed(golden):
    golden("upstream.conf", render_upstream([member("nid001-0"), member("nid002-0", "10.0.0.2")]))
    golden("upstream.empty.conf", render_upstream([]))


@pytest.mark.parametrize(
    ("text", "version"),
    [("nginx version: nginx/1.22.1\n", (1, 22, 1)), ("nginx version: nginx/1.31.3 (x)", (1, 31, 3)), ("?", ())],
)
def test_versions(text, version):
    assert parse_version(text) == version


@contextlib.contextmanager
def answering(name: str, address: str):
    """A small HTTP server that answers with its name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield member(name, address, http_port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def start(nginx, tmp_path):
    """Start a balancer in a folder; it is stopped at the end."""
    running = []

    def _start(members=(), folder=tmp_path / "nginx") -> tuple[Balancer, str]:
        plan = BalancerPlan(host="127.0.0.1", grpc_port=free_port("127.0.0.1"), http_port=free_port("127.0.0.1"))
        balancer = Balancer(folder, plan)
        running.append(balancer)
        balancer.start(members)
        return balancer, f"http://127.0.0.1:{plan.http_port}"

    yield _start
    for balancer in running:
        balancer.stop(grace=1)


def test_requests_go_to_every_member_and_follow_them(start):
    with answering("one", "127.0.6.1") as one, answering("two", "127.0.6.2") as two:
        balancer, url = start([one])
        assert asked(url) == {"one"}
        balancer.update([one, two])
        until(lambda: asked(url) == {"one", "two"}, what="both members")
        balancer.update([two])
        until(lambda: asked(url) == {"two"}, what="the second member alone")


def asked(url: str, times: int = 10) -> set[str]:
    """What a number of requests were answered with, one connection each."""
    found = set()
    for _ in range(times):
        with requests.get(url, timeout=5) as answer:
            found.add(answer.text if answer.ok else str(answer.status_code))
    return found


def test_without_members_a_request_is_refused_at_once(start):
    _, url = start([])
    assert asked(url, 1) == {"502"}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_folder_name_will_do(start, tmp_path, name):
    with answering("one", "127.0.6.1") as one:
        _, url = start([one], folder=tmp_path / name)
        assert asked(url, 1) == {"one"}


def test_a_refused_configuration_leaves_the_last_good_one(start, tmp_path):
    with answering("one", "127.0.6.1") as one:
        balancer, url = start([one])
        good = (tmp_path / "nginx" / "upstream.conf").read_text()
        with pytest.raises(EndpointError, match="last good one stays"):
            balancer.update([member(address="no such host !")])
        assert (tmp_path / "nginx" / "upstream.conf").read_text() == good
        assert asked(url, 1) == {"one"}


@pytest.mark.parametrize("which", ["grpc_port", "http_port"])
def test_a_port_in_use_is_one_line_with_the_next_step(nginx, tmp_path, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"grpc_port": free_port("127.0.0.1"), "http_port": free_port("127.0.0.1")}
        ports[which] = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=rf"port {ports[which]} of 127.0.0.1.*balancer\.grpc_port"):
            Balancer(tmp_path, BalancerPlan(host="127.0.0.1", **ports)).start([])


def test_a_killed_monitors_nginx_is_replaced(start, tmp_path):
    with answering("one", "127.0.6.1") as one:
        left, _ = start([one])
        pid = int((tmp_path / "nginx" / "nginx.pid").read_text())
        second = Balancer(tmp_path / "nginx", left._plan)
        try:
            second.start([one])
            assert left._child is not None
            assert left._child.wait(5) is not None, f"nginx {pid} still runs"
            assert second.alive()
        finally:
            second.stop(grace=1)


def test_stop_leaves_no_worker(start, tmp_path):
    balancer, _ = start([])
    pid = int((tmp_path / "nginx" / "nginx.pid").read_text())
    balancer.stop(grace=1)
    assert not Path(f"/proc/{pid}").exists()
    assert not balancer.alive()


def test_a_killed_nginx_is_noticed_and_replaced(start, tmp_path):
    """Its worker lives on and keeps the port."""
    with answering("one", "127.0.6.1") as one:
        balancer, url = start([one])
        os.kill(int((tmp_path / "nginx" / "nginx.pid").read_text()), signal.SIGKILL)
        until(lambda: not balancer.alive(), what="the end of nginx")
        balancer.start([one])
        assert balancer.alive()
        assert asked(url, 1) == {"one"}
