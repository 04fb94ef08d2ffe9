"""Retry policy of failed requests: at once (gRPC), after a pause, for longer, or never.

gRPC repeats UNAVAILABLE by itself, quickly and a few times. What it does not repeat is left to `persist`:
a server that unloads its models on SIGTERM, a stream that a killed server tore, a deadline that a hung server
let pass. A model that is not known may be on its way: it is waited for, not as long as a server. Inference is pure,
so a repeat never does harm.
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
    # A request larger than this buffer is not repeated; the default is 256 KiB, less than one large event.
    ("grpc.per_rpc_retry_buffer_size", 256 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # By default a channel that lost its server waits up to 120 s before it connects again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An endpoint is inside the cluster; http_proxy is for the world outside it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""The arguments of every channel to an endpoint."""

# Triton on its way down answers NOT_FOUND, not UNAVAILABLE, with this text. An unknown model is also
# NOT_FOUND, but "is not found": a mistake, or a server that has not loaded it yet.
_UNLOADING: Final = "no available versions"

# INTERNAL and UNKNOWN mean a model's own fault, except when the transport or a Python stub died under it.
_TORN: Final = ("RST_STREAM", "GOAWAY", "Stream removed", "Connection reset", "Broken pipe", "is not healthy")

# What Triton's Python backend makes of a stage's refusal (tracking/serving.py): its words, and where in the code.
_REFUSED: Final = re.compile(
    r"Failed to process the request\(s\) for model (instance )?'[^']*', message: Refused: (.*?)( At: \S*\(\d+\): .*)?$"
)

_ALWAYS_AGAIN: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED"})


class RequestFailed(Exception):
    """One attempt failed: gRPC's status name, such as `UNAVAILABLE`, and its message."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = one_line(_REFUSED.sub(r"\2", " ".join(message.split())))


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to keep trying: `seconds` from the first failure, with pauses that double up to `longest`.

    A model that the server does not know is waited for `unknown_model` seconds at most.
    """

    seconds: float = 120.0
    unknown_model: float = 20.0
    shortest: float = 0.1
    longest: float = 5.0

    def left(self, failure: RequestFailed, waited: float) -> float:
        """Return for how many seconds more a request is repeated, `waited` after its first failure; 0 for never."""
        if worth_repeating(failure):
            return max(0.0, self.seconds - waited)
        return max(0.0, min(self.seconds, self.unknown_model) - waited) if unknown_model(failure) else 0.0

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt number `attempt` (from 0), jittered by half."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.shortest * 2.0 ** min(attempt, 30))


def worth_repeating(failure: RequestFailed) -> bool:
    """Say whether the same request may succeed later: yes for a transport or a server in trouble."""
    if failure.status in _ALWAYS_AGAIN:
        return True
    if failure.status == "NOT_FOUND":
        return _UNLOADING in failure.message
    return failure.status in {"INTERNAL", "UNKNOWN"} and any(mark in failure.message for mark in _TORN)


def unknown_model(failure: RequestFailed) -> bool:
    """Say whether the server does not know the model at all."""
    return failure.status == "NOT_FOUND" and not worth_repeating(failure)


class UnknownModel(ModelError):
    """The server does not know the model, and did not come to know it: no event is to blame."""


def explain(failure: RequestFailed, *, server: str, model: str) -> ExatrkxError:
    """Return the error that a user sees for a failed request: EndpointError or ModelError, one line."""
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


def refused(failure: RequestFailed) -> bool:
    """Say whether nothing listens at the address at all."""
    return failure.status == "UNAVAILABLE" and "connection refused" in failure.message.lower()


async def persist(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[T, int]:
    """Call `attempt` until it succeeds; return its value and the number of repeats.

    Raises the last RequestFailed when it is not worth repeating, or when it came after the patience ended.
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
