"""The interface of a balancer: one address for the ready servers of a farm. Each kind is one module in this folder.

A balancer outlives its monitor: a killed monitor leaves its balancer serving, and the next monitor of the job on this
machine adopts that balancer. Adoption from another machine needs the balancer's address to move, and is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from exatrkx_hpc.base.ownership import EndpointId
from exatrkx_hpc.base.ports import public_host
from exatrkx_hpc.fleet.members.reconcile import Member

#: Header of an answer with the server that gave it, `host:port`; also of an answer in which the balancer says that no
#: server took the request. After a retry inside the balancer, the header may list all servers tried, separated by ", ";
#: the last of them answered.
MEMBER_HEADER: Final = "exatrkx-member"


@dataclass(frozen=True, kw_only=True)
class Listen:
    """How a balancer listens and for whom: addresses, processes, the longest request in seconds, and the farm's job.

    `farm` and `job` become part of ENDPOINT_HEADER, with the balancer's own instance.
    """

    host: str
    grpc_port: int
    http_port: int
    worker_processes: int = 1
    request_timeout: float = 60.0
    farm: str = "exatrkx"
    job: str = "0"

    @property
    def grpc(self) -> str:
        """The gRPC address that clients use, `host:port`."""
        return f"{public_host(self.host)}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """The HTTP address that clients use, `host:port`."""
        return f"{public_host(self.host)}:{self.http_port}"


class Balancer(Protocol):
    """Distributes requests over the ready servers of a farm; answers carry MEMBER_HEADER and ENDPOINT_HEADER.

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

    @property
    def identity(self) -> EndpointId:
        """Whose the balancer is, as each of its answers says; the instance is new at each start."""
        ...

    @property
    def pid(self) -> int | None:
        """The ID of the balancer's main process; None if it has no process."""
        ...

    def start(self, members: Iterable[Member]) -> None:
        """Start for these members and return when the balancer listens; end orphans of an earlier one in its folder.

        Raises EndpointError if a port is in use or the configuration is rejected; the message names the next step.
        """
        ...

    def adopt(self) -> bool:
        """Take over the balancer that an earlier monitor left in the same folder of this machine.

        Returns False, and changes nothing, if there is none, or if it listens on other addresses. An adopted balancer
        keeps its identity and its members until the next update.
        """
        ...

    def leave(self) -> None:
        """Let go of the balancer, which runs on with its last members; afterwards, stop() does nothing."""
        ...

    def update(self, members: Iterable[Member]) -> None:
        """Send new requests to these members; running requests finish on their server.

        Does nothing if the balancer already does so. Raises EndpointError if the change is rejected; the last valid
        configuration then stays active.
        """
        ...

    def warnings(self) -> tuple[str, ...]:
        """Return what the balancer has complained about since the last call, one line for each kind of complaint."""
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
    program is not on this machine. `left` returns where a balancer listens that an earlier monitor left running in this
    folder of this machine; None if there is none.
    """

    program: str
    find: Callable[[], str]
    make: Callable[[Path, Listen], Balancer]
    left: Callable[[Path], Listen | None]
