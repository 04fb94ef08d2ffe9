"""One channel to the endpoint: hits in, labels out, with patience for servers that come and go."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import ArrayLike, NDArray
from tritonclient.utils import InferenceServerException

from exatrkx_hpc.errors import ConfigError, EndpointError, ExatrkxError, InputError, ModelError
from exatrkx_hpc.work.events import COLUMNS
from exatrkx_hpc.work.retry import (
    CHANNEL_OPTIONS,
    Patience,
    RequestFailed,
    explain,
    one_line,
    persist,
    refused,
    worth_repeating,
)

MODEL = "exatrkx"
"""The ensemble that turns FEATURES (hits) into LABELS."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The labels of one event, int64 `[N]`, the seconds they took with all repeats, and how many repeats."""

    labels: NDArray[np.int64]
    seconds: float
    retries: int


class Client:
    """An asynchronous client of one endpoint; use it within one event loop, and close it."""

    def __init__(
        self, server: str, *, model: str = MODEL, request_timeout: float = 60.0, patience: float = 120.0
    ) -> None:
        """Prepare a channel to `server` (`host:port`); nothing is sent yet.

        `request_timeout` is the deadline of one attempt in seconds. `patience` is how long, in seconds after
        the first failure, a request is repeated; 0 means not at all. Raises ConfigError for a bad address.
        """
        self.server = checked_address(server)
        self.model = model
        self._timeout = request_timeout
        self._patience = Patience(seconds=patience)
        self._triton = triton.InferenceServerClient(server, channel_args=list(CHANNEL_OPTIONS))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; requests in flight end with an error."""
        await self._triton.close()

    async def find_tracks(self, hits: ArrayLike) -> NDArray[np.int64]:
        """Return the track label of each hit, int64 `[N]`, for hits `[N, 3]`.

        Raises InputError for hits that are no finite `[N, 3]` numbers, EndpointError when nothing useful
        answers within the patience, ModelError when the model refuses or answers nonsense.
        """
        return (await self.ask(hits)).labels

    async def ask(self, hits: ArrayLike) -> Answer:
        """Do what `find_tracks` does, and also say how long it took; the same errors."""
        features = checked_hits(hits)
        tensor = triton.InferInput("FEATURES", list(features.shape), "FP32").set_data_from_numpy(features)
        begin = time.monotonic()
        try:
            result, retries = await persist(lambda: self._infer(tensor), patience=self._patience)
        except RequestFailed as failure:
            raise explain(failure, server=self.server, model=self.model) from failure
        labels = self._labels(result, len(features))
        return Answer(labels=labels, seconds=time.monotonic() - begin, retries=retries)

    async def _infer(self, tensor: triton.InferInput) -> triton.InferResult:
        try:
            return await self._triton.infer(
                self.model,
                [tensor],
                outputs=[triton.InferRequestedOutput("LABELS")],
                client_timeout=self._timeout,
            )
        except InferenceServerException as error:
            raise _failed(error) from None

    def _labels(self, result: triton.InferResult, hits: int) -> NDArray[np.int64]:
        try:
            labels = result.as_numpy("LABELS")
        except ValueError as error:  # the bytes do not make up the shape
            raise ModelError(f"{self.model} at {self.server} sent broken LABELS: {one_line(str(error))}") from error
        if labels is None or labels.dtype != np.int64 or labels.shape != (hits,):
            what = "no LABELS" if labels is None else f"LABELS {labels.dtype} {list(labels.shape)}"
            raise ModelError(f"{self.model} at {self.server} sent {what} for {hits} hits, not int64 [{hits}]")
        return np.array(labels)  # the client's array is a read-only view of the message

    async def check(self, deadline: float) -> None:
        """Return when the endpoint serves the model; wait for it at most `deadline` seconds.

        A refused connection or a server without the model fails at once. Raises EndpointError or ModelError.
        """
        until = time.monotonic() + deadline
        while True:
            try:
                ready = await self._triton.is_model_ready(self.model, client_timeout=max(0.1, deadline))
                if ready:
                    return
                break
            except InferenceServerException as error:
                failure = _failed(error)
                late = time.monotonic() + 0.2 > until
                if refused(failure) or late or not worth_repeating(failure):
                    raise self._unreachable(failure) from None
                await asyncio.sleep(0.2)
        raise ModelError(
            f"{self.model} is not ready at {self.server} (ready: {await self._ready_models()}); "
            "check the server's model repository and its log"
        )

    def _unreachable(self, failure: RequestFailed) -> ExatrkxError:
        if failure.status in {"UNIMPLEMENTED", "UNKNOWN", "INTERNAL"}:
            return EndpointError(
                f"{self.server} is no Triton gRPC endpoint ({failure.status}: {failure.message}); "
                "--server wants the gRPC port"
            )
        return explain(failure, server=self.server, model=self.model)

    async def _ready_models(self) -> str:
        try:
            index = await self._triton.get_model_repository_index(client_timeout=5.0)
        except InferenceServerException:  # a site may restrict this call; the list is only a help
            return "unknown"
        names = sorted({entry.name for entry in index.models if entry.state == "READY"})
        return ", ".join(names) or "none"


def check_endpoint(server: str, model: str = MODEL, deadline: float = 10.0) -> None:
    """Return when `server` (`host:port`) serves `model`; wait for it at most `deadline` seconds.

    Raises EndpointError when nothing useful answers, ModelError when the model is not loaded, ConfigError for
    a bad address. Not for use inside an event loop: there, `await Client(...).check(deadline)`.
    """

    async def check() -> None:
        async with Client(server, model=model) as client:
            await client.check(deadline)

    asyncio.run(check())


def checked_hits(hits: ArrayLike) -> NDArray[np.float32]:
    """Return `hits` as contiguous float32 `[N, 3]`; raise InputError when they are no such finite numbers."""
    try:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(hits, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"hits cannot be turned into float32 [N,3]: {one_line(str(error))}") from error
    # ascontiguousarray makes a scalar one-dimensional, which the shape check refuses like any other.
    if array.ndim != 2 or array.shape[1] != COLUMNS:
        raise InputError(f"hits have the shape {list(array.shape)}, not [N,3] (r/3000, phi/pi, z/400)")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(f"hit {row} is not finite in single precision: {array[row].tolist()}")
    return array


def checked_address(server: str) -> str:
    """Return `server` if it reads HOST:PORT; raise ConfigError otherwise."""
    host, _, port = server.rpartition(":")
    if not host or "/" in server or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--server wants HOST:PORT, such as 127.0.0.1:9191, not {server!r}")
    return server


def _failed(error: InferenceServerException) -> RequestFailed:
    status = (error.status() or "UNKNOWN").removeprefix("StatusCode.")
    return RequestFailed(status, error.message() or "no reason given")
