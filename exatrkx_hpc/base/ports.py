"""TCP ports of this machine: which are free, and which are a user's own."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import ClassVar, Literal

from exatrkx_hpc.base.news import Level, News, Tell, untold

#: Users' own ports lie between those that sites give to services and those that the kernel gives to connections.
_FIRST, _PORTS_PER_USER, _USERS = 20_000, 3, 4_000
#: What a user has a port for; another's, of a user id that is 4,000 away, are the same.
_PLACES = ("http", "grpc", "prometheus")


@dataclass(frozen=True, kw_only=True)
class PortTaken(News):
    """The port that is a user's `own` for a part (grpc, http, prometheus) cannot be used; `port` takes its place."""

    code: ClassVar[str] = "port-taken"
    #: Who has noted the own one finds another there.
    usual: ClassVar[Level] = Level.WARNING
    part: str
    own: int
    port: int
    reason: str

    def __str__(self) -> str:
        """Return both ports, and why."""
        return (
            f"{self.part} port: your own port {self.own} is not available ({self.reason}); using {self.port} this time"
        )


def port_trouble(host: str, port: int) -> str | None:
    """Return why `port` of `host` cannot be listened on now, or None when it can."""
    with socket.socket() as probe:
        # As a server would: a port whose last connections are still fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def free_port(host: str) -> int:
    """Return a port that is free on `host` now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def user_port(what: str, uid: int) -> int:
    """Return the port that the user `uid` has for `what` (http, grpc, prometheus), the same on every machine."""
    return _FIRST + _PORTS_PER_USER * (uid % _USERS) + _PLACES.index(what)


def chosen_port(host: str, wanted: int | Literal["user"], what: str, tell: Tell = untold) -> int:
    """Return the port to listen on: `wanted` itself, any free one for 0, for `user` one's own, if it is free.

    One that is not makes room for any free one, which `tell` is told.
    """
    if wanted != "user":
        return wanted or free_port(host)
    own = user_port(what, os.getuid())
    if (trouble := port_trouble(host, own)) is None:
        return own
    other = free_port(host)
    tell(PortTaken(part=what, own=own, port=other, reason=trouble))
    return other


def public_host(host: str) -> str:
    """Return how others call the host that a program listens on: one on every address has this machine's name."""
    return socket.getfqdn() if host in ("0.0.0.0", "::", "[::]") else host
