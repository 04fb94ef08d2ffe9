"""Probes of servers: Triton's own answer that it is ready, by its own name, asked of all at once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, BrokenBarrierError, Event, Thread

import pytest
from server_records import record

from exatrkx_hpc.fleet.members.probe import is_ready, probe
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
