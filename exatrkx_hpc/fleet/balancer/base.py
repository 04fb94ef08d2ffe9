"""The interface of a balancer: one address for the ready servers of a farm. Each kind is one module in this folder.

A balancer stops with the monitor that started it. A balancer that outlives its monitor would need two more methods:
detach from a running balancer, and take one over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from exatrkx_hpc.base.ports import public_host
from exatrkx_hpc.fleet.balancer.access import OPEN, Access
from exatrkx_hpc.fleet.members.reconcile import Member

#: Header of a gRPC response with the server that answered, `host:port`. After a retry inside the balancer, the header
#: may list all servers tried, separated by ", "; the last of them answered.
MEMBER_HEADER: Final = "exatrkx-member"


@dataclass(frozen=True, kw_only=True)
class Listen:
    """The addresses on which a balancer listens, its number of processes, and who may use it."""

    host: str
    grpc_port: int
    http_port: int
    worker_processes: int = 1
    #: The address that clients are told; empty: that of `host`.
    advertise: str = ""
    access: Access = OPEN

    @property
    def grpc(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return f"{self.advertise or public_host(self.host)}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """The HTTP address that clients use, `host:port`."""
        return f"{self.advertise or public_host(self.host)}:{self.http_port}"


class Balancer(Protocol):
    """Distributes requests over the ready servers of a farm; gRPC responses carry MEMBER_HEADER.

    Inference is idempotent, so the balancer may retry a failed request on another server. Without a ready server, the
    balancer rejects a request at once.
    """

    @property
    def name(self) -> str:
        """The kind of the balancer, such as `nginx`."""
        ...

    @property
    def listen(self) -> Listen:
        """The addresses on which the balancer listens."""
        ...

    def start(self, members: Iterable[Member]) -> None:
        """Start for these members and return when the balancer listens; end orphans of an earlier one in its folder.

        Raises EndpointError if a port is in use or the configuration is rejected; the message names the next step.
        """
        ...

    def update(self, members: Iterable[Member]) -> None:
        """Send new requests to these members; running requests finish on their server.

        Raises EndpointError if the change is rejected; the last valid configuration then stays active.
        """
        ...

    def alive(self) -> bool:
        """Return whether the balancer runs."""
        ...

    def stop(self, *, grace: float = 5.0) -> None:
        """Finish running requests for up to `grace` seconds, then end all processes; safe to repeat."""
        ...


@dataclass(frozen=True, kw_only=True)
class BalancerKind:
    """A kind of balancer: the name of its processes, and the functions that find its program and make a balancer.

    `find` returns the path of the program. `make` takes the balancer's own folder. Both raise MissingComponent if the
    program is not on this machine.
    """

    program: str
    find: Callable[[], str]
    make: Callable[[Path, Listen], Balancer]
