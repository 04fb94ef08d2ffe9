"""Retry policy for failed requests: what each failure says of the event, the server and the endpoint.

gRPC itself repeats only what was never sent (its transparent retries). Everything else is decided here, because a
repeated request may kill the next server. `cause_of` classifies a failure. `persist` repeats what cost no server
anything: nothing was sent, or no server took the request. All other failures end the delivery of an event, and
`blame.py` decides whether the event is delivered again. Inference has no side effects, so a retry never harms results.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, InputError, ModelError
from exatrkx_hpc.base.readable import one_line

T = TypeVar("T")

CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # Without a retry policy, this allows transparent retries only: of requests that no server has seen.
    ("grpc.enable_retries", 1),
    # Bytes. gRPC does not retry a request larger than this buffer; the default, 256 KiB, is less than one large event.
    ("grpc.per_rpc_retry_buffer_size", 256 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The shortest interval that a Triton allows by default: it closes a connection that asks more often. It also sets
    # TCP_USER_TIMEOUT to the timeout: data that the other side does not acknowledge ends the connection after 20 s.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # By default, a channel that lost its server waits up to 120 s before it reconnects.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An endpoint is inside the cluster; http_proxy is for addresses outside.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""The arguments of every channel to an endpoint."""

PATIENCE: Final = 600.0
"""Default seconds for which a request is retried. Slurm holds a requeued job for 120 s; then its servers start."""


class Cause(str, Enum):
    """What a failed attempt says.

    `NOT_SENT`: no server has seen the request. `BUSY`: the endpoint or a server answered that it does not take the
    request now. `DENIED`: the endpoint refuses every request, such as one without a valid token. `UNKNOWN_MODEL`: the
    server does not know the model. These four cost the event nothing.

    `TORN`: the stream broke while a server had the request. `DEADLINE`: a server had the request for too long.
    `FAULT`: the server could not process the request: CUDA, memory, a dead stub. The event may be the cause of these
    three, or not. `REFUSED`: the server says that the event is wrong, or its answer is. `TOO_LARGE`: the message is
    larger than a limit, on every server.
    """

    NOT_SENT = "not-sent"
    BUSY = "busy"
    DENIED = "denied"
    UNKNOWN_MODEL = "unknown-model"
    TORN = "torn"
    DEADLINE = "deadline"
    FAULT = "fault"
    REFUSED = "refused"
    TOO_LARGE = "too-large"


#: Causes after which the same delivery goes on, within the patience.
_WAIT: Final = frozenset({Cause.NOT_SENT, Cause.BUSY, Cause.UNKNOWN_MODEL})

#: Causes that a later attempt may not have.
_PASSING: Final = frozenset({Cause.NOT_SENT, Cause.BUSY, Cause.TORN, Cause.DEADLINE, Cause.FAULT})


def _any_of(*marks: str) -> re.Pattern[str]:
    return re.compile("|".join(marks), re.IGNORECASE)


_TOO_LARGE: Final = _any_of(r"message larger than max", r"http2 header with status: 413")

# What gRPC says when it has no connection.
_NO_CONNECTION: Final = _any_of(
    "failed to connect", "connections to all backends failing", "connection refused", "hostname lookup",
    "name resolution", "DNS resolution", "empty address list", "no route to host", "network is unreachable",
)  # fmt: skip

# The balancer's words when it has no answer of a server; see nginx/nginx.conf.j2.
_NO_SERVER: Final = _any_of("no server of the farm could take the request")

# A server that answers this has not begun: its queue is full, or it is not ready. An HTTP status comes from a proxy.
_NOT_NOW: Final = _any_of(
    "maximum queue size", "request timeout expired", "server (is )?not ready", "server is stopping",
    "unavailable state", "http2 header with status", "too many (requests|connections)",
)  # fmt: skip

# A Triton that is shutting down answers NOT_FOUND, not UNAVAILABLE, with this text. An unknown model is also
# NOT_FOUND, but "is not found": a wrong name, or a server that has not loaded the model yet.
_UNLOADING: Final = "no available versions"

# A server of a farm with a token takes calls from its balancer alone.
_RESTRICTED: Final = "protocol is restricted"

# INTERNAL and UNKNOWN mean a fault of the model, unless the transport broke, or the server is sick.
_BROKEN_STREAM: Final = _any_of(
    "RST_STREAM", "GOAWAY", "Stream removed", "Connection reset", "Broken pipe", "Socket closed"
)
_SICK: Final = _any_of(
    r"cuda[ _]?(error|kernel error|failure|driver|runtime|out of memory)", r"\bcuda(Error|Malloc|Memcpy|Stream)",
    r"CUDA_ERROR", r"CU(BLAS|DNN|SPARSE|FFT|RAND)_STATUS", r"\bcudnn\b", r"\bcublas\b", r"\bnvml\b",
    "device-side assert", "illegal memory access", "no CUDA-capable device", "uncorrectable ECC",
    "out of memory", "bad_alloc", "cannot allocate memory", "failed to allocate", "MemoryError",
    r"shared[ -]memory", r"/dev/shm", r"\bshm\b", "no space left on device", "too many open files",
    "input/output error", r"stub process .*(not healthy|died|exited|terminated)", "is not healthy",
)  # fmt: skip

# The text that Triton's Python backend adds around a stage's refusal (tracking/serving.py), with the code location.
_REFUSED: Final = re.compile(
    r"Failed to process the request\(s\) for model (instance )?'[^']*', message: Refused: (.*?)( At: \S*\(\d+\): .*)?$"
)


class RequestFailed(Exception):
    """One failed attempt: gRPC's status name, such as `UNAVAILABLE`, and its message.

    `member` is the server that the balancer names, empty if unknown. `sent` is whether a server has got the request;
    None if unknown.
    """

    def __init__(self, status: str, message: str, *, member: str = "", sent: bool | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.text = " ".join(message.split())  # in full: the cause may be at the end of a traceback
        self.message = one_line(_REFUSED.sub(r"\2", self.text))
        self.member = member
        self.sent = sent

    @property
    def cause(self) -> Cause:
        """What the failure says of event, server and endpoint."""
        return cause_of(self)


def cause_of(failure: RequestFailed) -> Cause:
    """Classify a failed attempt."""
    if _TOO_LARGE.search(failure.text):
        return Cause.TOO_LARGE
    if failure.sent is False and failure.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return Cause.NOT_SENT
    by_text = _BY_TEXT.get(failure.status)
    return by_text(failure) if by_text is not None else _BY_STATUS.get(failure.status, Cause.REFUSED)


_BY_STATUS: Final = {
    "DEADLINE_EXCEEDED": Cause.DEADLINE,
    "CANCELLED": Cause.TORN,
    "ABORTED": Cause.BUSY,
    "DATA_LOSS": Cause.FAULT,
    "UNAUTHENTICATED": Cause.DENIED,
    "PERMISSION_DENIED": Cause.DENIED,
    "UNIMPLEMENTED": Cause.DENIED,
}


def _unavailable(failure: RequestFailed) -> Cause:
    if _RESTRICTED in failure.text:
        return Cause.FAULT if failure.member else Cause.DENIED  # a server whose balancer has another key, or none
    if _NO_SERVER.search(failure.text):
        # An older balancer does not say whether a server got the request. It names the server that it tried.
        sent = bool(failure.member) if failure.sent is None else failure.sent
        return Cause.TORN if sent else Cause.NOT_SENT
    if _NO_CONNECTION.search(failure.text):
        return Cause.NOT_SENT
    if _NOT_NOW.search(failure.text):
        return Cause.BUSY
    return Cause.FAULT if failure.member else Cause.TORN  # the balancer names a server that answered


def _internal(failure: RequestFailed) -> Cause:
    if _REFUSED.search(failure.text):  # the model's own words, whatever they contain
        return Cause.REFUSED
    if _NOT_NOW.search(failure.text):
        return Cause.BUSY
    if _BROKEN_STREAM.search(failure.text):
        return Cause.TORN
    return Cause.FAULT if _SICK.search(failure.text) else Cause.REFUSED


def _not_found(failure: RequestFailed) -> Cause:
    return Cause.BUSY if _UNLOADING in failure.text else Cause.UNKNOWN_MODEL


def _exhausted(failure: RequestFailed) -> Cause:
    return Cause.FAULT if _SICK.search(failure.text) else Cause.BUSY


_BY_TEXT: Final[dict[str, Callable[[RequestFailed], Cause]]] = {
    "UNAVAILABLE": _unavailable,
    "INTERNAL": _internal,
    "UNKNOWN": _internal,
    "NOT_FOUND": _not_found,
    "RESOURCE_EXHAUSTED": _exhausted,
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to retry: `seconds` after the first failure, with pauses that double from `shortest` to `longest`.

    An unknown model is retried for at most `unknown_model` seconds.
    """

    seconds: float = PATIENCE
    unknown_model: float = 20.0
    shortest: float = 0.1
    longest: float = 5.0

    def left(self, failure: RequestFailed, waited: float) -> float:
        """Return the remaining seconds for retries, `waited` seconds after the first failure; 0 means no retry."""
        if failure.cause not in _WAIT:
            return 0.0
        limit = min(self.seconds, self.unknown_model) if unknown_model(failure) else self.seconds
        return max(0.0, limit - waited)

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt `attempt` (from 0): 50% to 100% of the pause, at random."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.shortest * 2.0 ** min(attempt, 30))


def worth_repeating(failure: RequestFailed) -> bool:
    """Return whether the same request may succeed later: yes if the transport or the server failed."""
    return failure.cause in _PASSING


def unknown_model(failure: RequestFailed) -> bool:
    """Return whether the server does not know the model."""
    return failure.cause is Cause.UNKNOWN_MODEL


class UnknownModel(ModelError):
    """The server does not know the model and did not load it in time; the event is not the cause."""


class EventTooLarge(InputError):
    """The tensors of an event are larger than a limit on the way to the model."""


class Poisoned(ModelError):
    """An event that costs a server each time it is delivered, on more than one server."""


NO_ENTRY: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
"""The caller has no valid token, or the endpoint does not pass the call on."""


class NoEntry(EndpointError):
    """The endpoint refuses the token or the call; no event is the cause, and a repetition cannot help."""


def _no_entry(failure: RequestFailed, *, server: str) -> NoEntry:
    """Return the error for a caller, or a call, that the endpoint does not let in."""
    if failure.status == "UNAUTHENTICATED":
        return NoEntry(
            f"the endpoint {server} refuses the token; use the run root of its farm, or set --token-file to the file "
            "with its token"
        )
    return NoEntry(f"the endpoint {server} refuses this call ({failure.message}); see docs/security.md")


def explain(failure: RequestFailed, *, server: str, model: str) -> ExatrkxError:
    """Return the user's error for a failed request: EndpointError, ModelError or EventTooLarge, one line."""
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
    said = f"{failure.status}: {failure.message}"
    if (passing := _passing(failure, said, server=server, model=model)) is not None:
        return passing
    kind = UnknownModel if unknown_model(failure) else ModelError
    return kind(f"{model} at {server} failed ({failure.status}): {failure.message}")


def _passing(failure: RequestFailed, said: str, *, server: str, model: str) -> ExatrkxError | None:
    """Return the error of a failure that is not the model's; None for one of the model."""
    if failure.cause is Cause.TOO_LARGE:
        return EventTooLarge(
            f"the event is too large for {model} at {server} ({said}); raise the limit on gRPC messages of the server "
            "or proxy that says so (at most 2 GiB), or split the event"
        )
    if failure.cause is Cause.DENIED and _RESTRICTED in failure.text:
        return EndpointError(
            f"{server} is a server that takes calls from its balancer alone; set --server to the address that "
            "'exatrkx-hpc monitor' prints"
        )
    if failure.cause is Cause.DENIED:
        return EndpointError(f"{server} refuses every request ({said}); check the token, the permissions and --server")
    if worth_repeating(failure):
        return EndpointError(f"{server} does not serve {model} ({said}); see the servers' logs")
    return None


def refused(failure: RequestFailed) -> bool:
    """Return whether the connection was refused: nothing listens at the address."""
    return failure.status == "UNAVAILABLE" and "connection refused" in failure.message.lower()


async def persist(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    retried: Callable[[RequestFailed], None] = lambda failure: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[T, int]:
    """Call `attempt` until it succeeds; return its value and the number of retries.

    Only failures that cost no server anything are retried; `retried` gets each of them. Raises the last RequestFailed
    if another delivery has to be decided, if a retry cannot help, or if the patience has ended.
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
            retried(failure)
            pause = min(left, patience.pause(repeats))  # the last attempt begins when the patience ends
        await sleep(pause)
        repeats += 1
