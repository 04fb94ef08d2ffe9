"""Probes of servers: Triton's own answer that it is ready, by its own name, asked of all at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, BrokenBarrierError, Event, Thread
from typing import Any

import fakes.pretend_members
import psutil
import pytest
from addresses import own_address
from server_records import record

from exatrkx_hpc.base.process import run
from exatrkx_hpc.fleet.members import kept
from exatrkx_hpc.fleet.members.probe import Prober, is_ready, probe
from exatrkx_hpc.fleet.members.record import ServerRecord

Answer = Callable[[str], tuple[int, str]]


@contextlib.contextmanager
def serving(answer: Answer, *, name: str = "n1-0") -> Iterator[ServerRecord]:
    """A server that answers each path with what `answer` says, and the record that it would write."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, text = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield record(name, address="127.0.0.1", http_port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def triton(*, name: str = "7/n1-0/1", ready: int = 200, live: int = 200, told: str | None = None) -> Answer:
    """What a Triton answers; `told` is what it says of itself, where that is not its name."""
    of_itself = told if told is not None else json.dumps({"name": name})
    answers = {"/v2/health/ready": (ready, ""), "/v2/health/live": (live, ""), "/v2": (200, of_itself)}
    return lambda path: answers.get(path, (404, ""))


def test_a_server_that_is_ready_under_its_own_name():
    with serving(triton()) as server:
        assert is_ready(server, 5)


@pytest.mark.parametrize(
    "answer",
    [
        triton(ready=503),
        triton(ready=400),
        triton(name="7/n2-0/1"),
        triton(told="<html>a login page</html>"),
        triton(told="[]"),
        triton(told="{}"),
    ],
    ids=["live alone", "refuses", "another server", "no JSON", "a stranger's JSON", "no name"],
)
def test_what_is_not_ready(answer):
    with serving(answer) as server:
        assert not is_ready(server, 5)


def test_where_nobody_listens():
    with serving(triton()) as server:
        pass
    assert not is_ready(server, 5)


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["/v2/health/ready", "/v2"])
def test_a_server_that_hangs_is_not_waited_for(silent):
    go_on = Event()

    def answer(path: str) -> tuple[int, str]:
        if path == silent:
            go_on.wait(60)
        return triton()(path)

    with serving(answer) as server:
        try:
            assert not is_ready(server, 0.5)
        finally:
            go_on.set()


def test_no_proxy_is_asked(web_proxy):
    with serving(triton()) as server:
        assert is_ready(server, 5)


@pytest.mark.slow
def test_all_are_asked_at_once():
    """Each answers only when all have been asked."""
    together = Barrier(5, timeout=20)

    def answer(path: str) -> tuple[int, str]:
        if path == "/v2/health/ready":
            try:
                together.wait()
            except BrokenBarrierError:
                return 503, ""
        return triton()(path)

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(answer, name=f"n{n}-0")) for n in range(5)]
        servers = [server.model_copy(update={"instance": "7/n1-0/1"}) for server in servers]
        assert probe(servers, 30) == {f"n{n}-0": True for n in range(5)}


def test_of_no_server_nothing_is_asked():
    assert probe([], 1) == {}


@contextlib.contextmanager
def pretended(number: int) -> Iterator[list[ServerRecord]]:
    """A process that pretends so many servers, which keep their connections, and the records of these."""
    first, port = own_address(last=1), 18000
    argv = [sys.executable, fakes.pretend_members.__file__, str(number), first, str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield [
                record(f"{one}-0", instance=f"1/{one}-0/1", address=one, http_port=port)
                for one in fakes.pretend_members.addresses(number, first)
            ]
        finally:
            process.kill()


@pytest.fixture
def prober() -> Iterator[Prober]:
    made = Prober()
    yield made
    made.close()


def connections() -> set[tuple[Any, Any]]:
    """Both ends: two connections to different addresses may have the same port here."""
    return {(one.laddr, one.raddr) for one in psutil.Process().net_connections("tcp") if one.status == "ESTABLISHED"}


def test_connections_are_kept_from_look_to_look(prober):
    with pretended(40) as records:
        assert all(prober(records, 20).values())
        before = connections()
        assert all(prober(records, 20).values())
        after = connections()
    assert len(after) >= 40 and after == before


def test_connections_to_servers_that_have_left_are_closed(prober):
    with pretended(8) as records:
        prober(records, 20)
        assert set(prober(records[:2], 20)) == {one.server for one in records[:2]}
        assert len(prober._kept._kept) == 2


def test_another_server_at_the_same_address_is_found_out_on_a_kept_connection(prober):
    with pretended(1) as (right,):
        assert prober([right], 20) == {right.server: True}
        wrong = right.model_copy(update={"instance": "1/other-0/1"})
        assert prober([wrong], 20) == {right.server: False}
        assert prober([right], 20) == {right.server: True}


def test_a_server_that_started_again_is_asked_over_a_new_connection(prober):
    with serving(triton()) as server:
        assert prober([server], 5) == {"n1-0": True}
    assert prober([server], 5) == {"n1-0": False}


def test_without_free_files_a_server_counts_as_not_asked(prober, monkeypatch):
    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with pretended(2) as records:
        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)
        assert prober(records, 5) == {}


def test_a_server_that_is_not_asked_any_more_has_no_connection(prober):
    """Nor has the last one: a Triton that ends would wait for it."""
    with pretended(2) as records:
        for some in (records, records[:1], []):
            prober(some, 20)
            there = {one.address for one in records}
            assert {remote.ip for _, remote in connections() if remote.ip in there} == {one.address for one in some}


def test_fewer_open_files_than_servers_are_enough(prober, monkeypatch):
    monkeypatch.setattr(kept, "_room_for", lambda _servers: 3)
    with pretended(10) as records:
        for _ in range(2):
            assert all(prober(records, 20).values())
        assert prober._kept._kept == {}


def test_a_probe_works_where_a_loop_already_runs():
    """As in a notebook."""

    async def look(server: ServerRecord) -> bool:
        return is_ready(server, 5)

    with serving(triton()) as server:
        assert asyncio.run(look(server))


@pytest.mark.parametrize("last", ["import threading; threading.kept = kept", "import gc; del kept; gc.collect()"])
def test_connections_that_nobody_closed_end_without_a_word(last):
    """They end with the program, or as garbage."""
    with pretended(1) as (server,):
        program = (
            "from exatrkx_hpc.fleet.members.kept import Kept\n"
            "async def ask(name, connection): return (await connection.get('/v2/health/ready')).ok\n"
            "kept = Kept()\n"
            "kept.itself = kept\n"  # garbage in a cycle ends in any order
            f"assert kept.ask({{'a': ({server.address!r}, {server.http_port})}}, ask, timeout=5) == {{'a': True}}\n"
        )
        done = run([sys.executable, "-W", "error", "-c", program + last + "\n"])
    assert (done.returncode, done.stderr) == (0, "")
