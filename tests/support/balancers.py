"""Helpers for tests of balancers: servers that answer with their name, and a balancer that records its calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread

import requests
from server_records import record

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ownership import EndpointId
from exatrkx_hpc.base.ports import free_port, port_trouble
from exatrkx_hpc.fleet.balancer.base import BalancerKind, Listen
from exatrkx_hpc.fleet.members.reconcile import Member


def member(name: str = "nid001-0", address: str = "10.0.0.1", **ports: int) -> Member:
    return Member(record=record(name, address=address, **ports), state="ready", note="answers")


def free_listen() -> Listen:
    return Listen(host="127.0.0.1", grpc_port=free_port("127.0.0.1"), http_port=free_port("127.0.0.1"))


class RecordingBalancer:
    """A balancer that only records its calls; each entry of `calls` is a verb and the names of the members.

    Unlike a real balancer, it does not listen, and it refuses members only while `trouble` is set.
    """

    name = "recording"

    def __init__(self, folder: Path, listen: Listen) -> None:
        self.listen = listen
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.trouble = ""
        self.complaints: list[str] = []
        self._starts = 0
        self._runs = False

    def start(self, members: Iterable[Member]) -> None:
        for port in (self.listen.grpc_port, self.listen.http_port):
            if port_trouble(self.listen.host, port):
                raise EndpointError(f"port {port} of {self.listen.host} is in use; set balancer.grpc_port")
        self._note("start", members)
        self._starts += 1
        self._runs = True

    @property
    def identity(self) -> EndpointId:
        return EndpointId(farm=self.listen.farm, job=self.listen.job, instance=str(self._starts))

    @property
    def pid(self) -> int | None:
        return None

    def adopt(self) -> bool:
        return False

    def leave(self) -> None:
        self.calls.append(("leave", ()))

    def warnings(self) -> tuple[str, ...]:
        found, self.complaints = tuple(self.complaints), []
        return found

    def update(self, members: Iterable[Member]) -> None:
        self._note("update", members)

    def alive(self) -> bool:
        return self._runs

    def stop(self, *, grace: float = 5.0) -> None:
        self._note("stop", ())
        self._runs = False

    def die(self) -> None:
        self._runs = False

    def _note(self, verb: str, members: Iterable[Member]) -> None:
        if self.trouble and verb != "stop":
            raise EndpointError(self.trouble)
        self.calls.append((verb, tuple(member.name for member in members)))


def _no_program() -> str:
    return ""


def _none_left(folder: Path) -> None:
    return None


RECORDING = BalancerKind(program="recording", find=_no_program, make=RecordingBalancer, left=_none_left)


@contextlib.contextmanager
def answering(name: str, address: str) -> Iterator[Member]:
    """Run a small HTTP server that answers with its name, and yield it as a member."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(name.encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield member(name, address, http_port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent(address: str) -> Iterator[tuple[Member, list[str]]]:
    """Run a server that closes each connection without an answer; the list gets one entry per connection."""
    taken: list[str] = []

    class Handler(BaseRequestHandler):
        def handle(self):
            taken.append(address)
            self.request.recv(1 << 16)

    with ThreadingTCPServer((address, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            port = server.server_address[1]
            yield member(f"silent-{address}", address, grpc_port=port, http_port=port), taken
        finally:
            server.shutdown()
            thread.join()


def asked(url: str, times: int = 10) -> set[str]:
    """Return the distinct answers, or status codes of errors, to `times` requests with one connection each."""
    found = set()
    for _ in range(times):
        with requests.get(url, timeout=5) as answer:
            found.add(answer.text if answer.ok else str(answer.status_code))
    return found
