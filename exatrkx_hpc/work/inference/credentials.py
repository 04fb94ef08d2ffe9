"""Channels to an endpoint with credentials: TLS with a pinned certificate, or clear text."""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from exatrkx_hpc.base.credentials import Credentials

NONE: Final = Credentials()
"""No token and no TLS."""


def open_channel(server: str, credentials: Credentials, options: list[tuple[str, int | str]]) -> grpc.aio.Channel:
    """Return a channel to `server` (`host:port`); calls need `credentials.metadata`. Send nothing yet."""
    if not credentials.certificate:
        return grpc.aio.insecure_channel(server, options=options)
    trusted = grpc.ssl_channel_credentials(root_certificates=credentials.certificate.encode())
    return grpc.aio.secure_channel(server, trusted, options=options)
