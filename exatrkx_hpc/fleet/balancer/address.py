"""The address on which the balancer listens: `internal` is this machine's address on the network of the nodes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.fleet.events import AddressUnknown

#: The value of balancer.host that stands for this machine's internal address.
INTERNAL: Final = "internal"
_EVERYWHERE: Final = "0.0.0.0"
#: Any port: connecting a UDP socket sends nothing, it only chooses a route.
_PORT: Final = 9


def listen_host(host: str, nodes: Iterable[str] = (), tell: Tell = untold) -> str:
    """Return `host`, or for `internal` this machine's address on the network of `nodes` (names or addresses).

    It is the source address towards the first node that resolves. Without one, it is the address of this machine's own
    name, then that of its default route. If all of these are unknown or loopback addresses, it is 0.0.0.0, and `tell`
    gets AddressUnknown.
    """
    if host != INTERNAL:
        return host
    found = next(_addresses(nodes), "")
    if not found:
        tell(AddressUnknown(name=socket.gethostname(), address=_EVERYWHERE))
    return found or _EVERYWHERE


def _addresses(nodes: Iterable[str]) -> Iterator[str]:
    for node in nodes:
        yield from _usable(_source_towards(node))
    with contextlib.suppress(OSError):
        yield from _usable(socket.gethostbyname(socket.gethostname()))
    yield from _usable(_source_towards("192.0.2.1"))  # an address for documentation: it has the default route


def _usable(address: str) -> Iterator[str]:
    if address and not ip_address(address).is_loopback and not ip_address(address).is_unspecified:
        yield address


def _source_towards(node: str) -> str:
    """Return the address from which this machine would send to `node`; '' if the node's name does not resolve."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, _PORT))
        return str(probe.getsockname()[0])
    return ""
