"""Retry policy for failed requests: fast retries by gRPC, then retries with growing pauses, or none.

gRPC itself retries UNAVAILABLE a few times, quickly. `persist` retries other failures: a server that unloads its models
on SIGTERM, a stream broken by a killed server, a deadline missed by a hung server. An unknown model may still be
loading, so it is also retried, but for a shorter time. Inference has no side effects, so a retry is always safe.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, ModelError
from exatrkx_hpc.base.readable import one_line

T = TypeVar("T")

_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.enable_retries", 1),
    # Bytes. gRPC does not retry a request larger than this buffer; the default, 256 KiB, is less than one large event.
    ("grpc.per_rpc_retry_buffer_size", 256 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # By default, a channel that lost its server waits up to 120 s before it reconnects.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An endpoint is inside the cluster; http_proxy is for addresses outside.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""The arguments of every channel to an endpoint."""

# A Triton that is shutting down answers NOT_FOUND, not UNAVAILABLE, with this text. An unknown model is also
# NOT_FOUND, but "is not found": a wrong name, or a server that has not loaded the model yet.
_UNLOADING: Final = "no available versions"

# INTERNAL and UNKNOWN mean a fault of the model, unless the transport or the Python backend's stub died.
_TORN: Final = ("RST_STREAM", "GOAWAY", "Stream removed", "Connection reset", "Broken pipe", "is not healthy")

# The text that Triton's Python backend adds around a stage's refusal (tracking/serving.py), with the code location.
_REFUSED: Final = re.compile(
    r"Failed to process the request\(s\) for model (instance )?'[^']*', message: Refused: (.*?)( At: \S*\(\d+\): .*)?$"
)

_ALWAYS_AGAIN: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED"})

NO_ENTRY: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
"""The caller has no valid token, or the endpoint does not pass the call on."""


class RequestFailed(Exception):
    """One failed attempt: gRPC's status name, such as `UNAVAILABLE`, and its message."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = one_line(_REFUSED.sub(r"\2", " ".join(message.split())))


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to retry: `seconds` after the first failure, with pauses that double from `shortest` to `longest`.

    An unknown model is retried for at most `unknown_model` seconds.
    """

    seconds: float = 120.0
    unknown_model: float = 20.0
    shortest: float = 0.1
    longest: float = 5.0

    def left(self, failure: RequestFailed, waited: float) -> float:
        """Return the remaining seconds for retries, `waited` seconds after the first failure; 0 means no retry."""
        if worth_repeating(failure):
            return max(0.0, self.seconds - waited)
        return max(0.0, min(self.seconds, self.unknown_model) - waited) if unknown_model(failure) else 0.0

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt `attempt` (from 0): 50% to 100% of the pause, at random."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.shortest * 2.0 ** min(attempt, 30))


def worth_repeating(failure: RequestFailed) -> bool:
    """Return whether the same request may succeed later: yes if the transport or the server failed."""
    if failure.status in _ALWAYS_AGAIN:
        return True
    if failure.status == "NOT_FOUND":
        return _UNLOADING in failure.message
    return failure.status in {"INTERNAL", "UNKNOWN"} and any(mark in failure.message for mark in _TORN)


def unknown_model(failure: RequestFailed) -> bool:
    """Return whether the server does not know the model."""
    return failure.status == "NOT_FOUND" and not worth_repeating(failure)


class UnknownModel(ModelError):
    """The server does not know the model and did not load it in time; the event is not the cause."""


def explain(failure: RequestFailed, *, server: str, model: str) -> ExatrkxError:
    """Return the user's error for a failed request: EndpointError or ModelError, one line."""
    if failure.status in NO_ENTRY:
        return _no_entry(failure, server=server)
    if failure.status == "DEADLINE_EXCEEDED":
        return EndpointError(
            f"no answer from {server} within the request timeout; raise the timeout, or check the servers"
        )
    if refused(failure):
        return EndpointError(
            f"nothing answers at {server} (connection refused); check that the farm is up and that 'exatrkx-hpc "
            "monitor' is running"
        )
    if failure.status == "UNAVAILABLE" and "hostname lookup error" in failure.message:
        return EndpointError(
            f"the host name of {server} cannot be resolved; set --server to the address that 'exatrkx-hpc monitor' "
            "prints"
        )
    if worth_repeating(failure):
        said = f"{failure.status}: {failure.message}"
        return EndpointError(f"{server} does not serve {model} ({said}); see the servers' logs")
    kind = UnknownModel if unknown_model(failure) else ModelError
    return kind(f"{model} at {server} failed ({failure.status}): {failure.message}")


class NoEntry(EndpointError):
    """The endpoint refuses the token or the call; no event is the cause, and a repetition cannot help."""


def _no_entry(failure: RequestFailed, *, server: str) -> NoEntry:
    """Return the error for a caller, or a call, that the endpoint does not let in; a repetition cannot help."""
    if failure.status == "UNAUTHENTICATED":
        return NoEntry(
            f"the endpoint {server} refuses the token; use the run root of its farm, or set --token-file to the file "
            "with its token"
        )
    return NoEntry(f"the endpoint {server} refuses this call ({failure.message}); see docs/security.md")


def refused(failure: RequestFailed) -> bool:
    """Return whether the connection was refused: nothing listens at the address."""
    return failure.status == "UNAVAILABLE" and "connection refused" in failure.message.lower()


async def persist(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[T, int]:
    """Call `attempt` until it succeeds; return its value and the number of retries.

    Raises the last RequestFailed if a retry cannot help or the patience has ended.
    """
    first_failure: float | None = None
    repeats = 0
    while True:
        try:
            return await attempt(), repeats
        except RequestFailed as failure:
            now = clock()
            first_failure = now if first_failure is None else first_failure
            left = patience.left(failure, now - first_failure)
            if left <= 0:
                raise
            pause = min(left, patience.pause(repeats))  # the last attempt begins when the patience ends
        await sleep(pause)
        repeats += 1
