"""One channel to the endpoint: hits in, labels out, with patience for servers that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.base.errors import ConfigError, EndpointError, ExatrkxError, ModelError
from exatrkx_hpc.work.events.given_hits import checked_hits
from exatrkx_hpc.work.inference.channel import Channel, Reply
from exatrkx_hpc.work.inference.modes import HITS, LABELS, MODEL, Request, models_of, route
from exatrkx_hpc.work.inference.retry import (
    Patience,
    RequestFailed,
    explain,
    one_line,
    persist,
    refused,
    worth_repeating,
)

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import Mode


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The labels of one event, int64 `[N]`, the seconds they took with all repeats, and how many repeats.

    `member` is the server that answered last and `version` the version of its model, where the answer says so.
    `models` are the seconds that each model took, repeats included, where the client asked it itself.
    """

    labels: NDArray[np.int64]
    seconds: float
    retries: int
    member: str = ""
    version: str = ""
    models: Mapping[str, float] = field(default_factory=dict)


class Client:
    """An asynchronous client of one endpoint; use it within one event loop, and close it."""

    def __init__(
        self,
        server: str,
        *,
        model: str = MODEL,
        mode: Mode = "ensemble",
        request_timeout: float = 60.0,
        patience: float = 120.0,
    ) -> None:
        """Prepare a channel to `server` (`host:port`); nothing is sent yet.

        `mode` is `ensemble` (one request to `model`), `stages` (one to each stage) or `fused` (one to the fused
        model). `request_timeout` is the deadline of one attempt in seconds. `patience` is how long, in seconds
        after the first failure, a request is repeated; 0 means not at all. Raises ConfigError for a bad address
        or mode.
        """
        self.server = checked_address(server)
        self._route = route(mode, model)
        self.model = models_of(mode, model)
        self._timeout = request_timeout
        self._patience = Patience(seconds=patience)
        self._channel = Channel(server)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; requests in flight end with an error."""
        await self._channel.close()

    async def find_tracks(self, hits: ArrayLike) -> NDArray[np.int64]:
        """Return the track label of each hit, int64 `[N]`, for hits `[N, 3]`.

        Raises InputError for hits that are no finite `[N, 3]` numbers, EndpointError when nothing useful
        answers within the patience, ModelError when the model refuses or answers nonsense.
        """
        return (await self.ask(hits)).labels

    async def ask(self, hits: ArrayLike) -> Answer:
        """Do what `find_tracks` does, and also say how long it took; the same errors."""
        features = checked_hits(hits)
        tensors: dict[str, NDArray[Any]] = {HITS: features}
        begin, repeats = time.monotonic(), 0
        ends = [begin]
        for request in self._route:
            reply, more = await self._send(request, tensors)
            tensors[request.result] = self._output(request, reply)
            repeats += more
            ends.append(time.monotonic())
        labels = self._labels(tensors[LABELS], len(features))
        seconds = time.monotonic() - begin
        models = {one.model: end - start for one, (start, end) in zip(self._route, pairwise(ends), strict=True)}
        return Answer(
            labels=labels,
            seconds=seconds,
            retries=repeats,
            member=reply.member,
            version=reply.version,
            models=models,
        )

    async def _send(self, request: Request, tensors: Mapping[str, NDArray[Any]]) -> tuple[Reply, int]:
        """Return the reply to one request, repeated as patience has it, and the number of repeats."""
        inputs = {name: tensors[source] for name, source in request.inputs.items()}

        async def attempt() -> Reply:
            return await self._channel.infer(request.model, inputs, request.output, timeout=self._timeout)

        try:
            return await persist(attempt, patience=self._patience)
        except RequestFailed as failure:
            raise explain(failure, server=self.server, model=request.model) from failure
        except ValueError as error:  # the bytes do not make up the shape
            what = f"{request.output}: {one_line(str(error))}"
            raise ModelError(f"{request.model} at {self.server} sent broken {what}") from error

    def _output(self, request: Request, reply: Reply) -> NDArray[Any]:
        if reply.output is None:
            raise ModelError(f"{request.model} at {self.server} sent no {request.output}; see the server's log")
        return reply.output

    def _labels(self, array: NDArray[Any], hits: int) -> NDArray[np.int64]:
        last = self._route[-1]
        if array.dtype != np.int64 or array.shape != (hits,):
            what = f"{last.output} {array.dtype} {list(array.shape)}"
            raise ModelError(f"{last.model} at {self.server} sent {what} for {hits} hits, not int64 [{hits}]")
        return np.array(array)  # the client's array is a read-only view of the message

    async def check(self, deadline: float) -> None:
        """Return when the endpoint serves every model of the mode; wait for it at most `deadline` seconds.

        A refused connection or a server without a model fails at once. Raises EndpointError or ModelError.
        """
        until = time.monotonic() + deadline
        for request in self._route:
            await self._check(request.model, deadline, until)

    async def _check(self, model: str, deadline: float, until: float) -> None:
        while True:
            try:
                if await self._channel.ready(model, timeout=max(0.1, deadline)):
                    return
                break
            except RequestFailed as failure:
                late = time.monotonic() + 0.2 > until
                if refused(failure) or late or not worth_repeating(failure):
                    raise self._unreachable(failure, model) from None
                await asyncio.sleep(0.2)
        raise ModelError(
            f"{model} is not ready at {self.server} ({await self._why_not(model)}); "
            "check the server's model repository and its log"
        )

    async def version(self) -> str:
        """Return the version of each model of the mode, with commas, as the server says; empty where it does not."""
        try:
            return ",".join([await self._channel.version(request.model, timeout=5.0) for request in self._route])
        except RequestFailed:  # a site may restrict this call
            return ""

    def _unreachable(self, failure: RequestFailed, model: str) -> ExatrkxError:
        if failure.status in {"UNIMPLEMENTED", "UNKNOWN", "INTERNAL"}:
            return EndpointError(
                f"{self.server} is no Triton gRPC endpoint ({failure.status}: {failure.message}); "
                "--server wants the gRPC port"
            )
        return explain(failure, server=self.server, model=model)

    async def _why_not(self, model: str) -> str:
        """Return what the server says of `model`, and which others are ready."""
        try:
            index = await self._channel.index(timeout=5.0)
        except RequestFailed:  # a site may restrict this call; the list is only a help
            return "ready: unknown"
        ready = sorted({name for name, state, _ in index if state == "READY"})
        reasons = [one_line(reason) for name, _, reason in index if name == model and reason]
        return "; ".join([*reasons, f"ready: {', '.join(ready) or 'none'}"])


def check_endpoint(server: str, model: str = MODEL, deadline: float = 10.0) -> None:
    """Return when `server` (`host:port`) serves `model`; wait for it at most `deadline` seconds.

    Raises EndpointError when nothing useful answers, ModelError when the model is not loaded, ConfigError for
    a bad address. Not for use inside an event loop: there, `await Client(...).check(deadline)`.
    """

    async def check() -> None:
        async with Client(server, model=model) as client:
            await client.check(deadline)

    asyncio.run(check())


def checked_address(server: str) -> str:
    """Return `server` if it reads HOST:PORT; raise ConfigError otherwise."""
    host, _, port = server.rpartition(":")
    if not host or "/" in server or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--server wants HOST:PORT, such as 127.0.0.1:9191, not {server!r}")
    return server
