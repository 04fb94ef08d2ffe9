#!/usr/bin/env python3
"""A stand-in for tritonserver that misbehaves on demand. Prints its port, then serves until it is killed.

It answers readiness, the repository index and inference (FEATURES -> LABELS: hit i gets the label i mod 7, and
the label of hit 0 is the number of hits). Inference calls are counted from 0, over all clients.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc


class Fake(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calls = 0
        self.now = 0

    async def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name == self.options.model)

    async def RepositoryIndex(self, request, context):
        entry = service_pb2.RepositoryIndexResponse.ModelIndex(name=self.options.model, version="1", state="READY")
        return service_pb2.RepositoryIndexResponse(models=[entry])

    async def ModelMetadata(self, request, context):
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1", self.options.version])

    async def ModelConfig(self, request, context):
        if self.options.no_config:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "restricted")
        if request.name == "gnn":
            key = Path(self.options.gnn).read_text() if self.options.gnn else "1"
            parameters = {"cut": model_config_pb2.ModelParameter(string_value=key)}
            config = model_config_pb2.ModelConfig(name="gnn", backend="python", parameters=parameters)
            return service_pb2.ModelConfigResponse(config=config)
        step = model_config_pb2.ModelEnsembling.Step(model_name="gnn", model_version=-1)
        scheduling = model_config_pb2.ModelEnsembling(step=[step])
        config = model_config_pb2.ModelConfig(name=request.name, platform="ensemble", ensemble_scheduling=scheduling)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request, context):
        statistics = service_pb2.ModelStatistics(name=self.options.member or self.options.model)
        return service_pb2.ModelStatisticsResponse(model_stats=[statistics])

    async def ModelInfer(self, request, context):
        call, o = self.calls, self.options
        self.calls += 1
        await self.suffer(int(request.inputs[0].shape[0]), context)
        if o.die_after is not None and call >= o.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if request.model_name != o.model:
            text = f"Request for unknown model: '{request.model_name}' is not found"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        if call < o.unavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if call < o.unknown:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{o.model}' is not found")
        if call < o.unloading:
            text = f"Request for unknown model: '{request.model_name}' has no available versions"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        if call < o.fail and (call + 1) % o.good_each:
            await context.abort(getattr(grpc.StatusCode, o.fail_status), o.fail_message)
        self.now += 1
        if o.most is not None and self.now > o.most:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{self.now} requests at a time")
        await asyncio.sleep(o.hang if call < o.hang_first else o.delay)
        self.now -= 1
        if o.member:
            await context.send_initial_metadata([("exatrkx-member", o.member)])
        return self.answer(request)

    async def suffer(self, hits, context):
        """Do what an event of so many hits does to this server."""
        o = self.options
        if o.notes:
            with open(o.notes, "a") as file:
                print(hits, o.name, file=file)
        if hits == o.killer:
            await asyncio.sleep(0.05)  # others are in flight
            os.kill(os.getpid(), signal.SIGKILL)
        if hits == o.hanger:
            await asyncio.sleep(600)
        for size, status, text in (
            (o.exhauster, grpc.StatusCode.INTERNAL, "RuntimeError: CUDA out of memory. Tried to allocate 80 GiB"),
            (o.gone, grpc.StatusCode.UNAVAILABLE, "Socket closed"),
            (o.refused, grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape"),
            (o.large, grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (99 vs. 9)"),
        ):
            if hits == size:
                await context.abort(status, text)

    def answer(self, request):
        (tensor,) = request.inputs
        hits = int(tensor.shape[0])
        features = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(hits, 3)
        assert (tensor.name, tensor.datatype) == ("FEATURES", "FP32") and features.shape == (hits, 3)
        labels = np.arange(hits, dtype=np.int64) % 7
        labels[:1] = hits
        if self.options.drop_label:
            labels = labels[:-1]
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=self.options.answers or self.options.version
        )
        response.outputs.add(name="LABELS", datatype="INT64", shape=labels.shape)
        response.raw_output_contents.append(labels.tobytes())
        return response


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token."""

    def __init__(self, token: str) -> None:
        self.right = ("authorization", f"Bearer {token}")

    async def intercept_service(self, continuation, call):
        if self.right in [tuple(pair) for pair in call.invocation_metadata]:
            return await continuation(call)

        async def refuse(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")

        return grpc.unary_unary_rpc_method_handler(refuse)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--model", default="exatrkx", help="the one model that is loaded")
    parser.add_argument("--version", default="1", help="the model's highest version")
    parser.add_argument("--answers", help="the version in its answers (default: --version)")
    parser.add_argument("--gnn", help="a file with a parameter of the model that the ensemble runs")
    parser.add_argument("--no-config", action="store_true", help="the configuration is not told")
    parser.add_argument("--token", help="a call needs this token")
    parser.add_argument("--member", help="what the balancer's header says")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each inference takes")
    parser.add_argument("--hang", type=float, default=0.0, help="seconds that the first --hang-first take")
    parser.add_argument("--hang-first", type=int, default=0)
    parser.add_argument("--unavailable", type=int, default=0, help="the first calls are UNAVAILABLE")
    parser.add_argument("--unloading", type=int, default=0, help="the first calls find no available versions")
    parser.add_argument("--unknown", type=int, default=0, help="the first calls do not know the model")
    parser.add_argument("--fail", type=int, default=0, help="the first calls fail with --fail-status")
    parser.add_argument("--fail-status", default="INTERNAL")
    parser.add_argument("--fail-message", default="the model broke")
    parser.add_argument("--good-each", type=int, default=1 << 30, help="but every so many-th of them is answered")
    parser.add_argument("--killer", type=int, help="an event of so many hits kills this server")
    parser.add_argument("--hanger", type=int, help="an event of so many hits is never answered")
    parser.add_argument("--exhauster", type=int, help="an event of so many hits needs too much memory")
    parser.add_argument("--gone", type=int, help="an event of so many hits is answered UNAVAILABLE")
    parser.add_argument("--refused", type=int, help="an event of so many hits is answered INVALID_ARGUMENT")
    parser.add_argument("--large", type=int, help="an event of so many hits is too large")
    parser.add_argument("--notes", help="a file that gets a line for each inference: hits and --name")
    parser.add_argument("--name", default="", help="the name of this server in --notes")
    parser.add_argument("--most", type=int, help="refuse more requests than this at a time")
    parser.add_argument("--drop-label", action="store_true", help="send one label too few")
    parser.add_argument("--die-after", type=int, help="SIGKILL itself at this call")
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    guards = [Guard(options.token)] if options.token else []
    limits = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(interceptors=guards, options=limits)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Fake(options), server)
    port = server.add_insecure_port(f"{options.host}:{options.port}")
    await server.start()
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=0)


if __name__ == "__main__":
    asyncio.run(serve(arguments()))
