"""A gRPC channel to Triton or the balancer; each call raises RequestFailed when it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.work.inference.credentials import NONE, open_channel
from exatrkx_hpc.work.inference.retry import CHANNEL_OPTIONS, RequestFailed

MEMBER: Final = "exatrkx-member"
"""The header in which the balancer names the server that answered, `host:port`; see nginx/nginx.conf.j2."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply to one request: outputs by name, the server (`member`) and the model version, if the reply has them."""

    outputs: Mapping[str, NDArray[Any]]
    member: str
    version: str


class Channel:
    """A channel; use it within one event loop, and close it. Timeouts are in seconds."""

    def __init__(self, server: str, credentials: Credentials = NONE) -> None:
        """Prepare the channel; send nothing yet."""
        self._channel = open_channel(server, credentials, list(CHANNEL_OPTIONS))
        self._metadata = credentials.metadata
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls in flight end with an error."""
        await self._channel.close()

    async def infer(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Iterable[str], *, timeout: float
    ) -> Reply:
        """Return the outputs of a model for its inputs, both by tensor name.

        Raises ValueError when the bytes of an output do not match its shape.
        """
        message = service_pb2.ModelInferRequest(model_name=model)
        for name in outputs:
            message.outputs.add(name=name)
        for name, array in inputs.items():
            message.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            message.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
        with _failures():
            call = self._stub.ModelInfer(message, timeout=timeout, metadata=self._metadata)
            response = await call
            headers = dict(await call.initial_metadata())
        # After a retry inside the balancer, the header lists all servers tried; the last one answered.
        member = str(headers.get(MEMBER, "")).rpartition(", ")[2]
        result = InferResult(response)
        found = {entry.name: result.as_numpy(entry.name) for entry in response.outputs}
        held = {name: array for name, array in found.items() if array is not None}
        return Reply(outputs=held, member=member, version=response.model_version)

    async def ready(self, model: str, *, timeout: float) -> bool:
        """Return whether the model is ready."""
        with _failures():
            asked = service_pb2.ModelReadyRequest(name=model)
            return bool((await self._stub.ModelReady(asked, timeout=timeout, metadata=self._metadata)).ready)

    async def version(self, model: str, *, timeout: float) -> str:
        """Return the highest version, which serves requests without a version; empty if there is none."""
        with _failures():
            asked = service_pb2.ModelMetadataRequest(name=model)
            said = await self._stub.ModelMetadata(asked, timeout=timeout, metadata=self._metadata)
        return max(said.versions, key=lambda version: (len(version), version), default="")

    async def index(self, *, timeout: float) -> list[tuple[str, str, str]]:
        """Return name, state and reason of the state for every model in the server's repository."""
        with _failures():
            asked = service_pb2.RepositoryIndexRequest()
            said = await self._stub.RepositoryIndex(asked, timeout=timeout, metadata=self._metadata)
        return [(entry.name, entry.state, entry.reason) for entry in said.models]


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise RequestFailed(error.code().name, error.details() or "no reason given") from None
