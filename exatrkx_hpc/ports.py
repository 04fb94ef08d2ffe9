"""TCP ports of this machine: which are free."""

from __future__ import annotations

import socket


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
