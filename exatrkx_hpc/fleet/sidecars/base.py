"""The interface of a sidecar: an optional program next to the balancer that follows the servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from exatrkx_hpc.fleet.members.reconcile import Member


class Sidecar(Protocol):
    """A program next to the balancer, in a thread of its own (aside.py), which reports a failure and retries."""

    @property
    def address(self) -> str:
        """The address of its web page, `host:port`."""
        ...

    def start(self, members: Iterable[Member]) -> None:
        """Start for these members and return when the program is ready; raises EndpointError if it fails."""
        ...

    def update(self, members: Iterable[Member]) -> None:
        """Follow these members from now on."""
        ...

    def alive(self) -> bool:
        """Return whether the program runs."""
        ...

    def stop(self) -> None:
        """Stop the program after it has written its data; safe to repeat, and during start(), which then fails."""
        ...
