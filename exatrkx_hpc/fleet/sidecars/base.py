"""What a sidecar is: a program beside the balancer that follows the servers; the farm serves without it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from exatrkx_hpc.fleet.members.reconcile import Member


class Sidecar(Protocol):
    """A program that the monitor keeps beside the balancer; what it cannot do is reported, and tried again."""

    @property
    def address(self) -> str:
        """Where its own page is, `host:port`."""
        ...

    def start(self, members: Iterable[Member]) -> None:
        """Start for these members and return when it is ready; raises EndpointError when it is not."""
        ...

    def update(self, members: Iterable[Member]) -> None:
        """Follow these members from now on."""
        ...

    def alive(self) -> bool:
        """Return whether it runs."""
        ...

    def stop(self) -> None:
        """End it after it has written what it holds; safe to repeat."""
        ...
