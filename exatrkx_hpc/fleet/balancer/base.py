"""What a balancer is: one address before the ready servers of a farm. Each kind of balancer is one file beside this.

A balancer ends with the monitor that started it. One that outlives its monitor needs two more verbs here: to leave it
running, and to take over one that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from exatrkx_hpc.base.ports import public_host
from exatrkx_hpc.fleet.members.reconcile import Member

#: The header of a gRPC answer in which a balancer names the server that answered, `host:port`. After a retry inside the
#: balancer the header may name all servers that were asked, separated by ", "; the one that answered is the last.
MEMBER_HEADER: Final = "exatrkx-member"


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where a balancer listens, and with how many processes."""

    host: str
    grpc_port: int
    http_port: int
    worker_processes: int = 1

    @property
    def grpc(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return f"{public_host(self.host)}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """The HTTP address that clients use, `host:port`."""
        return f"{public_host(self.host)}:{self.http_port}"


class Balancer(Protocol):
    """Spreads requests over the ready servers of a farm; gRPC answers carry MEMBER_HEADER.

    Inference changes nothing, so a request whose server fails may be sent to another one. Without a server, a request
    is refused at once, and never waits.
    """

    @property
    def name(self) -> str:
        """What kind of balancer it is, such as `nginx`."""
        ...

    @property
    def listen(self) -> Listen:
        """Where it listens."""
        ...

    def start(self, members: Iterable[Member]) -> None:
        """Start for these members and return when it listens; ends what an earlier one of its folder left running.

        Raises EndpointError when a port is in use or the configuration is refused; the message says what to do.
        """
        ...

    def update(self, members: Iterable[Member]) -> None:
        """Spread new requests over these members; requests that run end where they are.

        Raises EndpointError when that is refused; requests then go on as before.
        """
        ...

    def alive(self) -> bool:
        """Return whether it runs."""
        ...

    def stop(self, *, grace: float = 5.0) -> None:
        """Finish running requests for up to `grace` seconds, then end with all processes; safe to repeat."""
        ...


@dataclass(frozen=True, kw_only=True)
class BalancerKind:
    """A kind of balancer: the name of its processes, how its program is found, how one with its own folder is made.

    `find` returns the path of the program; `find` and `make` raise MissingComponent when it is not here.
    """

    program: str
    find: Callable[[], str]
    make: Callable[[Path, Listen], Balancer]
