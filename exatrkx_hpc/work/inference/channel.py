"""A gRPC channel to Triton or the balancer; each call raises RequestFailed when it fails."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.work.inference.credentials import NONE, open_channel
from exatrkx_hpc.work.inference.ownership import ASK, Ownership
from exatrkx_hpc.work.inference.retry import CHANNEL_OPTIONS, RequestFailed
from exatrkx_hpc.work.workloads.base import ModelTensors

MEMBER: Final = "exatrkx-member"
"""The header in which the balancer names the server that answered, `host:port`; see nginx/nginx.conf.j2."""

SENT: Final = "exatrkx-sent"
"""The header in which the balancer says how many bytes it has sent to each server that it tried."""

LARGEST: Final = (2 << 30) - (1 << 20)
"""Maximum size of a request in bytes: protobuf cannot hold 2 GiB, and the rest is for names and shapes."""

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s,:]+):\d+$")


class BadReply(ValueError):
    """The bytes of an output do not match its shape; `member` is the server that sent them, if known."""

    def __init__(self, message: str, *, member: str) -> None:
        super().__init__(message)
        self.member = member


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply to one request: outputs by name, the server (`member`) and the model version, if the reply has them."""

    outputs: Mapping[str, NDArray[Any]]
    member: str
    version: str


class _Connection:
    """One connection; a channel that missed a deadline gets a new one, and requests on the old one may finish."""

    def __init__(self, server: str, credentials: Credentials) -> None:
        self.channel = open_channel(server, credentials, list(CHANNEL_OPTIONS))
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.calls = 0
        self.retired = False

    @property
    def connected(self) -> bool:
        return bool(self.channel.get_state() is grpc.ChannelConnectivity.READY)


class Channel:
    """A channel; use it within one event loop, and close it. Timeouts are in seconds."""

    def __init__(self, server: str, credentials: Credentials = NONE, *, identity: str = "") -> None:
        """Prepare the channel; send nothing yet.

        With `identity`, calls fail with NotOurs if another farm's endpoint answers (see ownership.py).
        """
        self._server = server
        self._ownership = Ownership(server, identity)
        self._credentials = credentials
        self._now = _Connection(server, credentials)
        self._old: set[_Connection] = set()

    async def close(self) -> None:
        """Close the channel; calls in flight end with an error."""
        for connection in (self._now, *self._old):
            await connection.channel.close()

    async def infer(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Iterable[str], *, timeout: float
    ) -> Reply:
        """Return the outputs of a model for its inputs, both by tensor name.

        Raises BadReply when the bytes of an output do not match its shape.
        """
        if (size := sum(array.nbytes for array in inputs.values())) > LARGEST:
            raise RequestFailed("RESOURCE_EXHAUSTED", f"Sent message larger than max ({size} vs. {LARGEST})")
        message = service_pb2.ModelInferRequest(model_name=model)
        for name in outputs:
            message.outputs.add(name=name)
        for name, array in inputs.items():
            message.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            message.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
        async with self._call() as stub:
            call = stub.ModelInfer(message, timeout=timeout, metadata=self._credentials.metadata)
            response = await call
            headers = tuple(await call.initial_metadata())
            self._ownership.require(headers)
            member = _member(headers)
        result = InferResult(response)
        try:
            found = {entry.name: result.as_numpy(entry.name) for entry in response.outputs}
        except (ValueError, TypeError, KeyError) as error:
            raise BadReply(str(error), member=member) from error
        held = {name: array for name, array in found.items() if array is not None}
        return Reply(outputs=held, member=member, version=response.model_version)

    async def ready(self, model: str, *, timeout: float) -> bool:
        """Return whether the model is ready."""
        async with self._call() as stub:
            asked = service_pb2.ModelReadyRequest(name=model)
            return bool((await stub.ModelReady(asked, timeout=timeout, metadata=self._credentials.metadata)).ready)

    async def version(self, model: str, *, timeout: float) -> str:
        """Return the highest version, which serves requests without a version; empty if there is none."""
        async with self._call() as stub:
            asked = service_pb2.ModelMetadataRequest(name=model)
            said = await stub.ModelMetadata(asked, timeout=timeout, metadata=self._credentials.metadata)
        return max(said.versions, key=lambda version: (len(version), version), default="")

    async def tensors(self, model: str, *, timeout: float) -> ModelTensors:
        """Return the tensors of a model."""
        async with self._call() as stub:
            asked = service_pb2.ModelMetadataRequest(name=model)
            said = await stub.ModelMetadata(asked, timeout=timeout, metadata=self._credentials.metadata)
        inputs, outputs = (
            {one.name: f"{one.datatype} [{', '.join(map(str, one.shape))}]" for one in entries}
            for entries in (said.inputs, said.outputs)
        )
        return ModelTensors(inputs=inputs, outputs=outputs)

    async def config(self, model: str, *, timeout: float) -> model_config_pb2.ModelConfig:
        """Return the configuration of a model as the server has completed it."""
        async with self._call() as stub:
            asked = service_pb2.ModelConfigRequest(name=model)
            said = await stub.ModelConfig(asked, timeout=timeout, metadata=self._credentials.metadata)
        return said.config

    async def index(self, *, timeout: float) -> list[tuple[str, str, str]]:
        """Return name, state and reason of the state for every model in the server's repository."""
        async with self._call() as stub:
            asked = service_pb2.RepositoryIndexRequest()
            said = await stub.RepositoryIndex(asked, timeout=timeout, metadata=self._credentials.metadata)
        return [(entry.name, entry.state, entry.reason) for entry in said.models]

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[service_pb2_grpc.GRPCInferenceServiceStub]:
        """Yield a stub for one call; a failed call raises RequestFailed."""
        connection = self._now
        connection.calls += 1
        try:
            await self._require_ours(connection)
            yield connection.stub
        except grpc.RpcError as error:
            self._ownership.doubt()
            self._ownership.require_of_failure(error)
            raise self._failure(error, connection) from None
        finally:
            connection.calls -= 1
            await self._close_if_unused(connection)

    async def _require_ours(self, connection: _Connection) -> None:
        """Ask who answers, if that is in doubt, before anything else is sent: neither an event nor the token.

        It is in doubt after a failure, and on a connection that is new or was lost, perhaps between two calls.
        """
        if not connection.connected:
            self._ownership.doubt()
        if self._ownership.in_doubt:
            call = connection.stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=ASK)
            try:
                await call
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                self._ownership.require(error.initial_metadata(), error.trailing_metadata())
            else:
                self._ownership.require(await call.initial_metadata())

    def _failure(self, error: Any, connection: _Connection) -> RequestFailed:  # noqa: ANN401 - of grpc, without types
        status, message = error.code().name, error.details() or "no reason given"
        headers = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
        sent = _sent(headers)
        if status == "DEADLINE_EXCEEDED":
            if sent is None and not connection.connected:
                sent = False
            # The connection may be dead although nothing says so, such as after a firewall forgot it.
            self._renew(connection)
        return RequestFailed(status, message, member=_member(headers), sent=sent)

    def _renew(self, connection: _Connection) -> None:
        if connection is self._now:
            connection.retired = True
            self._old.add(connection)
            self._now = _Connection(self._server, self._credentials)

    async def _close_if_unused(self, connection: _Connection) -> None:
        if connection.retired and not connection.calls and connection in self._old:
            self._old.discard(connection)
            await connection.channel.close()


def _member(headers: Iterable[tuple[str, object]]) -> str:
    """Return the server that the balancer names; empty if it names none.

    After a retry inside the balancer, the header lists all servers tried; the last one answered. Without any server,
    it has the name of the balancer's group, which is no address.
    """
    value = next((str(value) for name, value in headers if name == MEMBER), "")
    last = re.split(r", | : ", value)[-1].strip()
    return last if _ADDRESS.fullmatch(last) else ""


def _sent(headers: Iterable[tuple[str, object]]) -> bool | None:
    """Return whether the balancer sent the request, or some of it, to a server; None if it does not say."""
    value = next((str(value) for name, value in headers if name == SENT), None)
    return None if value is None else any(int(count) > 0 for count in re.findall(r"\d+", value))
