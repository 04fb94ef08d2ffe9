"""HTTP GET over kept connections to many servers at once, on one asyncio loop.

A probe is one short request to each of up to thousands of servers each second. A library for HTTP spends most of that
second on what Triton's answers never use, such as redirects, cookies and proxies: see
docs/decisions/0013-own-http-probes.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")
Address: TypeAlias = tuple[str, int]
"""Host and port."""
#: Requests at a time: one core reads all answers, so more at a time would only make each wait longer.
_AT_ONCE: Final = 512
#: Errors of this machine, which say nothing about the server.
_OUR_OWN: Final = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM),
        *(errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
#: Files that this process needs in addition to one connection per server.
_OTHER_FILES: Final = 256


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The status and the body of an answer."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300


class _Wire(asyncio.Protocol):
    """One TCP connection; sends a GET and reads its answer, one after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._read = bytearray()

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, waiting: asyncio.Future[Answer]) -> None:
        """Send a request; `waiting` gets its answer, or OSError if the connection breaks."""
        self._waiting = waiting
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer."""
        self._read += data
        self._finish(ended=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """End an answer without a length, or fail the request."""
        self._finish(ended=True)
        self._transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc if isinstance(exc, OSError) else ConnectionResetError("closed"))

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, *, ended: bool) -> None:
        """Hand over the answer if all of it is there; without a length, it lasts until the end of the connection."""
        head, found, rest = bytes(self._read).partition(b"\r\n\r\n")
        if not found or self._waiting is None or self._waiting.done():
            return
        head = head.lower()
        try:
            length = _length(head)
            if len(rest) < (length or 0) or (length is None and not ended):
                return
            self._waiting.set_result(Answer(status=int(head.split(None, 2)[1]), body=rest[:length]))
        except (ValueError, IndexError):
            self._waiting.set_exception(ConnectionError("not an answer of Triton"))
            self.close()
            return
        self._read.clear()
        if length is None or not head.startswith(b"http/1.1") or b"\r\nconnection: close" in head:
            self.close()


def _length(head: bytes) -> int | None:
    """Return the length of the body as the head of an answer tells it; raises ValueError if it comes in chunks."""
    fields = dict(field.partition(b":")[::2] for field in head.split(b"\r\n")[1:])
    if b"transfer-encoding" in fields:
        raise ValueError("Triton sends no chunks")
    return int(fields[b"content-length"]) if b"content-length" in fields else None


class Connection:
    """A connection to one server, opened when it is needed; `checked` is the user's, and '' on a new connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._wire = _Wire()
        self.checked = ""

    async def get(self, path: str) -> Answer:
        """Send a request and return its answer; raises OSError if the server cannot be reached or breaks off."""
        if self._wire.open:
            with contextlib.suppress(ConnectionError):  # a server may close a connection that it finds idle
                return await self._send(path)
        self.close()
        self.checked = ""
        _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, *self._address)
        return await self._send(path)

    async def _send(self, path: str) -> Answer:
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._wire.send(f"GET {path} HTTP/1.1\r\nHost: {self._address[0]}\r\n\r\n".encode("ascii"), waiting)
        try:
            return await waiting
        except BaseException:  # a late answer must not be taken for that to the next request
            self.close()
            raise

    def close(self) -> None:
        """Close the connection at once."""
        self._wire.close()


Question: TypeAlias = Callable[[str, Connection], Coroutine[Any, Any, T]]
"""Asks the server of this name over a connection, with `get`; may raise OSError."""


class Kept:
    """Connections that are kept from one round of questions to the next; use it from one thread at a time.

    512 servers are asked at a time. Time and memory of a round grow linearly with the servers.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: dict[Address, Connection] = {}
        self._end: weakref.finalize[..., Kept] | None = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later question opens new ones."""
        if self._end is not None:
            self._end()
        self._loop = self._end = None

    def ask(self, servers: Mapping[str, Address], question: Question[T], *, timeout: float) -> dict[str, T | None]:
        """Put the question to each server and return the answers by the servers' names; each has `timeout` seconds.

        An answer is None if the server gave none in time. A name is missing if this machine could not ask, for lack of
        files, ports or memory. Connections to servers that are not asked any more are closed: a Triton that ends waits
        for those at its HTTP port, for the whole of its exit timeout.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # It also runs if nobody closes this; it keeps loop and connections until then, which __del__ could not.
            self._end = weakref.finalize(self, _close, self._loop, self._kept)
        return _run(self._loop, self._ask(servers, question, timeout))

    async def _ask(self, servers: Mapping[str, Address], question: Question[T], timeout: float) -> dict[str, T | None]:
        wanted = set(servers.values())
        for address in [address for address in self._kept if address not in wanted]:
            self._kept.pop(address).close()
        await _settled()
        room = _room_for(len(wanted))
        answers: dict[str, T | None] = {}
        names = iter(servers)  # each asker takes the next one

        async def asker() -> None:
            for name in names:
                connection = self._kept.setdefault(servers[name], Connection(servers[name]))
                try:
                    answers[name] = await _within(timeout, question(name, connection))
                except OSError as error:
                    if error.errno not in _OUR_OWN:
                        answers[name] = None
                if room < len(wanted):  # the next ones need the files
                    self._kept.pop(servers[name]).close()

        await asyncio.gather(*(asker() for _ in range(min(room, _AT_ONCE, len(servers)))))
        return answers


async def _within(timeout: float, answer: Coroutine[Any, Any, T]) -> T:
    """Return the answer, or raise TimeoutError; an answer that has come in time counts, even if it is read late.

    One loop serves thousands of connections, and this process may not get a CPU at once. So when the time is over, what
    has arrived is read first.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    running, late = True, False

    def end() -> None:
        nonlocal late
        if running:
            late = True
            task.cancel()

    timer = loop.call_later(timeout, loop.call_soon, end)
    try:
        return await answer
    except asyncio.CancelledError:
        if late:
            raise TimeoutError from None
        raise
    finally:
        running = False
        timer.cancel()


def _close(loop: asyncio.AbstractEventLoop, connections: dict[Address, Connection]) -> None:
    """Close all connections and their loop."""
    for connection in connections.values():
        connection.close()
    connections.clear()
    _run(loop, _settled())
    loop.close()


async def _settled() -> None:
    """Let closed connections free their sockets, which takes the loop more than one turn."""
    for _ in range(5):
        await asyncio.sleep(0)


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; in a thread of its own if this thread already runs a loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run_until_complete(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(loop.run_until_complete, work).result()


def _room_for(servers: int) -> int:
    """Return how many of so many servers can be asked at a time; raises the limit of open files if that helps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = servers + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        most = need if hard == resource.RLIM_INFINITY else min(need, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return servers if soft == resource.RLIM_INFINITY else max(16, min(servers, soft - _OTHER_FILES))
