"""Check an address before a run: the host resolves, and the port is no HTTP or metrics port by mistake."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Mapping
from typing import Final

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.work.inference.client import checked_address

#: The first bytes of an HTTP/2 connection, which gRPC uses: the preface and an empty SETTINGS frame (RFC 9113, 3.4).
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
#: The place of a frame's type in its header of 9 bytes, and the type SETTINGS, which every server sends first.
_TYPE, _SETTINGS, _HEADER = 3, 4, 9
#: In seconds, for each of at most five short questions.
_TIMEOUT: Final = 2.0


def require_grpc(server: str, *, meant: Mapping[str, str] | None = None) -> None:
    """Raise EndpointError if the host of `server` does not resolve, or its port serves HTTP or metrics, not gRPC.

    The error names the endpoint that was meant: that of `meant` for an address of the farm, else the gRPC port next to
    the HTTP or metrics port. Anything else passes, also a port that nothing listens on. Raises ConfigError for an
    address that is not HOST:PORT.
    """
    host, _, port = checked_address(server).rpartition(":")
    host = host.strip("[]")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "invalid name"
        raise EndpointError(f"the host of --server {server} does not resolve ({why}); check its name") from error
    if _speaks_grpc(host, int(port)) is not False:
        return
    known, kind = (meant or {}).get(server, ""), _kind(host, int(port))
    if not known and not kind:
        return
    kind = kind or "HTTP"
    step = known or _beside(host, int(port), kind)
    where = f"use --server {step}" if step else "set --server to the gRPC port, usually 8001, or 9191 of an endpoint"
    raise EndpointError(f"--server {server} is a port for {kind}, not for gRPC; {where}")


def _speaks_grpc(host: str, port: int) -> bool | None:
    """Return whether a server answers the beginning of an HTTP/2 connection as HTTP/2; None if none listens."""
    try:
        connection = socket.create_connection((host, port), timeout=_TIMEOUT)
    except OSError:
        return None
    said = b""
    with connection, contextlib.suppress(OSError):
        connection.sendall(_PREFACE)
        while len(said) < _HEADER and (more := connection.recv(_HEADER - len(said))):
            said += more
    return len(said) == _HEADER and said[_TYPE] == _SETTINGS


def _kind(host: str, port: int) -> str:
    """Return what a port is for that does not speak gRPC: `HTTP` or `metrics`; '' if neither is certain."""
    if "nv_inference" in _get(host, port, "/metrics"):
        return "metrics"
    if '"extensions"' in _get(host, port, "/v2"):  # the name is the server's own
        return "HTTP"
    return ""


def _get(host: str, port: int, path: str) -> str:
    """Return the body of an answer with status 200; '' for any other answer, or none."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read(1 << 20).decode(errors="replace") if answer.status == http.client.OK else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _beside(host: str, port: int, kind: str) -> str:
    """Return the gRPC port beside an HTTP or metrics port, if it answers; Triton's ports follow each other."""
    grpc = port + 1 if kind == "HTTP" else port - 1
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{grpc}" if 0 < grpc < 65536 and _speaks_grpc(host, grpc) else ""
