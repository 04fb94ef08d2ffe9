"""Who may use the endpoint, and which calls pass: the token, the allow-list, the limits of a client, and TLS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from exatrkx_hpc.base.ownership import ENDPOINT_HEADER
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.launch.secrets import GRPC_PREFIX, KEY_HEADER

#: The gRPC calls that the balancer passes on, by service. Any other call, also of a newer Triton, is refused.
GRPC_CALLS: Final[Mapping[str, tuple[str, ...]]] = {
    "inference.GRPCInferenceService": (
        *("ModelInfer", "ModelStreamInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
        *("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex"),
    ),
    "grpc.health.v1.Health": ("Check", "Watch"),
}
#: The same over HTTP, as patterns of the path as it was sent. A name has no %, so that nothing is decoded later.
_NAME: Final = "[^/?#%]+"
HTTP_CALLS: Final = (
    "/v2/?",
    "/v2/health/(live|ready)",
    f"/v2/models/{_NAME}(/versions/{_NAME})?(/(ready|config|stats|infer|generate|generate_stream))?",
    "/v2/repository/index",
    f"/{ENDPOINT_HEADER}",
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use an endpoint, and how.

    Without `token`, everyone who reaches the ports may. `server_key` opens the servers to the balancer. With
    `certificate` and `private_key` (PEM), both ports use TLS; `pinned` is the file with the certificate, for clients.
    `requests` limits the concurrent requests of one client address, `rate` its requests per second; 0 means no limit.
    """

    token: str = field(default="", repr=False)
    server_key: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    pinned: str = ""
    requests: int = 0
    rate: int = 0

    @property
    def kind(self) -> str:
        """`token`, or `open` if everyone may use the endpoint."""
        return "token" if self.token else "open"

    @property
    def tls(self) -> bool:
        """Whether the endpoint uses TLS."""
        return bool(self.certificate)


#: Everyone may use the endpoint, without a limit; the allow-list holds.
OPEN: Final = Access()


def rules(access: Access) -> dict[str, Any]:
    """Return the values of the templates `nginx/access-*.j2`; none is a secret."""
    return {
        "grpc_calls": {re.escape(service): methods for service, methods in GRPC_CALLS.items()},
        "http_calls": HTTP_CALLS,
        "grpc_key_header": f"{GRPC_PREFIX}{KEY_HEADER}",
        "key_header": KEY_HEADER,
        "client_requests": access.requests,
        "client_rate": access.rate,
        "tls": access.tls,
    }


def secret_files(access: Access) -> dict[str, str]:
    """Return the name and content of each file beside nginx.conf that only its owner may read (mode 0600)."""
    token = re.escape(access.token)
    files = {"secrets.conf": render("nginx/secrets.conf.j2", token=token, server_key=access.server_key)}
    if access.tls:
        files |= {"certificate.pem": access.certificate, "certificate.key": access.private_key}
    return files


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
