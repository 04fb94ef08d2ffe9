"""TCP ports of this machine: free ports, and ports derived from the user ID."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import ClassVar, Literal

from exatrkx_hpc.base.news import Level, News, Tell, untold

#: Users' own ports are above the usual ports of services and below the kernel's range for outgoing connections.
_FIRST, _PORTS_PER_USER, _USERS = 20_000, 3, 4_000
#: The parts for which a user has a port. Users whose IDs differ by a multiple of 4,000 share their ports.
_PLACES = ("http", "grpc", "prometheus")


@dataclass(frozen=True, kw_only=True)
class PortTaken(News):
    """The user's `own` port for `part` (grpc, http, prometheus), or that of the last time, is not available.

    `port` replaces it.
    """

    code: ClassVar[str] = "port-taken"
    #: A client that still uses the own port may reach another program.
    usual: ClassVar[Level] = Level.WARNING
    part: str
    own: int
    port: int
    reason: str

    def __str__(self) -> str:
        """Return both ports and the reason."""
        return f"{self.part} port: {self.own} is not available ({self.reason}); using {self.port} this time"


def port_trouble(host: str, port: int) -> str | None:
    """Return why no program can listen on `port` of `host` now, or None if one can."""
    with socket.socket() as probe:
        # Servers set this option, too: a port with connections in TIME_WAIT is free.
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
    """Return the port of user `uid` for `what` (http, grpc, prometheus); it is the same on every machine."""
    return _FIRST + _PORTS_PER_USER * (uid % _USERS) + _PLACES.index(what)


def chosen_port(host: str, wanted: int | Literal["user"], what: str, tell: Tell = untold, *, last: int = 0) -> int:
    """Return the port to listen on: `wanted`, any free port for 0, or the user's own port for `user`.

    Any free port is `last`, the port of the last time, if that is free. If the own port or `last` is not available,
    report the port that replaces it to `tell`, as PortTaken.
    """
    if wanted != "user" and wanted:
        return wanted
    own = user_port(what, os.getuid()) if wanted == "user" else last
    if not own:
        return free_port(host)
    if (trouble := port_trouble(host, own)) is None:
        return own
    other = last if last and port_trouble(host, last) is None else free_port(host)
    tell(PortTaken(part=what, own=own, port=other, reason=trouble))
    return other


def public_host(host: str) -> str:
    """Return the name by which clients reach `host`: the name of this machine if `host` means every address."""
    return socket.getfqdn() if host in ("0.0.0.0", "::", "[::]") else host
