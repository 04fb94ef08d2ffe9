"""Whose endpoint answers: events go to the farm that they are meant for, and to no other on the same port.

After a monitor and its balancer are gone, another user's balancer may take their port. So a client that knows its
endpoint's identity asks who answers before the first event on each connection, and again after each failure; it refuses
the answers of another. A new balancer of the same job is as good as the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ownership import ENDPOINT_HEADER, EndpointId, parse_endpoint_id
from exatrkx_hpc.work.inference.retry import CHANNEL_OPTIONS, RequestFailed

#: Seconds that an endpoint has to say whose it is.
ASK: Final = 10.0
_UNSENT: Final = "no event was sent to it"


class NotOurs(RequestFailed):
    """Another farm's endpoint, or none, answers at the address; ours may come back, so this counts as UNAVAILABLE."""

    def __init__(self, message: str) -> None:
        super().__init__("UNAVAILABLE", message, sent=False)


class Ownership:
    """Whether the endpoint at an address is the expected one; it always is without an expectation."""

    def __init__(self, server: str, expected: str = "") -> None:
        """Take the address and the identity that its endpoint should have, `FARM/JOB/INSTANCE` or empty."""
        self._server = server
        self._expected = parse_endpoint_id(expected)
        #: Whether the next request must ask first who answers.
        self.in_doubt = self._expected is not None

    def doubt(self) -> None:
        """Note a failed request or a lost connection: somebody else may answer the next request."""
        self.in_doubt = self._expected is not None

    def require(self, *metadata: Iterable[tuple[str, Any]] | None) -> None:
        """Check the headers of an answer; raises NotOurs for another's, and for an answer without the header."""
        if self._expected is None:
            return
        said = self._said(metadata)
        if self._expected.same_job(said):
            self.in_doubt = False
            return
        self.in_doubt = True
        whose = f"the endpoint of {said.farm}, job {said.job}" if said is not None else "not an endpoint of this farm"
        raise NotOurs(
            f"{self._server} is {whose}; expected {self._expected.farm}, job {self._expected.job}, {_UNSENT}; start "
            f"'exatrkx-hpc monitor {self._expected.job}' on another port, or set --server"
        )

    def require_of_failure(self, error: grpc.RpcError) -> None:
        """Check the headers of a failed answer, if it has the header: a refused connection has none."""
        headers = (error.initial_metadata(), error.trailing_metadata())
        if self._said(headers) is not None:
            self.require(*headers)

    @staticmethod
    def _said(metadata: Iterable[Iterable[tuple[str, Any]] | None]) -> EndpointId | None:
        for headers in metadata:
            for name, value in headers or ():
                if name == ENDPOINT_HEADER:
                    return parse_endpoint_id(str(value))
        return None


def _channel(server: str, certificate: str) -> Any:  # noqa: ANN401 - of grpc, without types
    options = list(CHANNEL_OPTIONS)
    if not certificate:
        return grpc.insecure_channel(server, options=options)
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(certificate.encode()), options=options)


def require_ours(server: str, expected: str, *, certificate: str = "", timeout: float = ASK) -> None:
    """Raise EndpointError if another farm's endpoint answers at `server`; an address where nothing answers is no error.

    `expected` is `FARM/JOB/INSTANCE`; empty accepts every endpoint. `certificate` (PEM) is for an endpoint with TLS.
    `timeout` is in seconds.
    """
    ownership = Ownership(server, expected)
    if not ownership.in_doubt:
        return
    with _channel(server, certificate) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            _, call = stub.ServerLive.with_call(service_pb2.ServerLiveRequest(), timeout=timeout)
            ownership.require(call.initial_metadata(), call.trailing_metadata())
        except NotOurs as stranger:
            raise EndpointError(stranger.message) from None
        except grpc.RpcError as error:
            try:
                ownership.require_of_failure(error)
            except NotOurs as stranger:
                raise EndpointError(stranger.message) from None
