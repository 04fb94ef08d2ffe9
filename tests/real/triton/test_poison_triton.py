"""Events and servers that fail, with real Tritons behind a real nginx: what they answer, and that nobody else pays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from balancers import free_listen, member
from repositories import tiny_repository
from triton_helper import running_triton

from exatrkx_hpc.fleet.balancer.nginx import KIND
from exatrkx_hpc.work.inference.channel import Channel
from exatrkx_hpc.work.inference.retry import Cause, RequestFailed
from exatrkx_hpc.work.run.run import run_clients

pytestmark = pytest.mark.usefixtures("triton", "nginx")

KILLS, EXHAUSTS, HANGS = 77, 78, 79
#: A model that does harm for events of so many hits.
MODEL = f"""\
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            hits = len(pb_utils.get_input_tensor_by_name(request, "FEATURES").as_numpy())
            if hits == {KILLS}:
                os._exit(1)
            if hits == {EXHAUSTS}:
                raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB")
            if hits == {HANGS}:
                time.sleep(4)
            time.sleep(0.01)
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("LABELS", np.zeros(hits, dtype=np.int64))]))
        return found
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[str]]:
    """Three Tritons of the model."""
    tiny_repository(tmp_path / "repository")
    (tmp_path / "repository" / "exatrkx" / "1" / "model.py").write_text(MODEL)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_triton(tmp_path / "repository", tmp_path)).grpc for _ in range(3)]


@pytest.fixture
def endpoint(servers: list[str], tmp_path: Path) -> Iterator[str]:
    balancer = KIND.make(tmp_path / "nginx", free_listen())
    balancer.start([member(f"s{n}", one.partition(":")[0], grpc_port=8001) for n, one in enumerate(servers)])
    try:
        yield balancer.listen.grpc
    finally:
        balancer.stop()


def failure(server: str, hits: int) -> RequestFailed:
    """Return how a server fails for an event of so many hits."""

    async def ask() -> RequestFailed:
        channel = Channel(server)
        try:
            await channel.infer("exatrkx", {"FEATURES": np.zeros((hits, 3), np.float32)}, ["LABELS"], timeout=30.0)
        except RequestFailed as failed:
            return failed
        finally:
            await channel.close()
        raise AssertionError("it was answered")

    return asyncio.run(ask())


def test_bad_events_and_a_server_without_its_stub_cost_no_other_event(settings, servers, endpoint):
    # A Triton does not start a dead stub again: from here on this server answers every event with an error.
    killed = failure(servers[0], KILLS)
    assert killed.cause is failure(servers[0], 3).cause is Cause.FAULT and "is not healthy" in killed.message
    sizes = [3] * 60
    sizes[20], sizes[40] = EXHAUSTS, HANGS
    report = run_clients(settings(sizes=sizes, server=endpoint, in_flight=6, request_timeout=2.0, patience=60.0))
    assert report.done == 58 and report.stopped is None
    assert [(one.event, one.kind) for one in report.failed] == [("evt_20", "poison"), ("evt_40", "poison")]
    assert "CUDA out of memory" in report.failed[0].reason and "request timeout" in report.failed[1].reason
