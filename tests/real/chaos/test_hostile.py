"""Strangers at the endpoint's port, while clients send events: they are refused, and no event is lost."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
from repositories import tiny_repository
from runs import make_events
from tritonclient.utils import InferenceServerException

from exatrkx_hpc import farm
from exatrkx_hpc.base.credentials import read_secret
from exatrkx_hpc.base.process import run
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.work.run.run import Settings

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx")]

EVENTS = 300
#: The first bytes of each HTTP/2 connection.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """The endpoint's addresses, and those of its servers."""

    grpc: str
    http: str
    servers: tuple[str, ...]
    token_file: Path

    @contextlib.contextmanager
    def connection(self, address: str) -> Iterator[socket.socket]:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as made:
            yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[Target, Path]]:
    root = tmp_path_factory.mktemp("farm")
    tiny_repository(root / "models")
    values = {
        "site": "local",
        "run_root": str(root),
        "cluster.local_address": "127.0.17.1",
        "server.model_repository": str(root / "models"),
        "server.drain": 0,
        "job.nodes": 2,
        "balancer.access": "token",
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
    }
    make_events(root / "events", [5 + n % 7 for n in range(EVENTS)])
    with farm.running(resolve(flags=values).farm, wait=120) as (job, watch):
        record = farm.endpoint_record(job.farm)
        servers = tuple(member.grpc for member in watch.view.ready)
        token = farm.endpoint_access(job.farm, job=job.id).files.token
        assert token is not None
        yield Target(grpc=record.grpc, http=record.http, servers=servers, token_file=token), root


def random_bytes(target: Target) -> None:
    randomly = random.Random(3)
    for _ in range(20):
        with target.connection(target.grpc) as made, contextlib.suppress(OSError):
            made.sendall(randomly.randbytes(64 << 10))
            assert b"HTTP/1.1 200" not in made.recv(1 << 16)


def http_1(target: Target) -> None:
    for _ in range(20):
        with target.connection(target.grpc) as made, contextlib.suppress(ConnectionError):
            made.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " not in made.recv(1 << 16)


def huge_claims(target: Target) -> None:
    """A header frame, an HTTP body and a gRPC message that say that 1 GB follows, and send nothing more."""
    settings = b"\0\0\0\x04\0\0\0\0\0"
    frame = b"\xff\xff\xff" + b"\x01\x04" + struct.pack(">I", 1)
    request = b"POST /v2/models/exatrkx/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"
    for address, data in ((target.grpc, PREFACE + settings + frame), (target.http, request)):
        with target.connection(address) as made, contextlib.suppress(OSError):
            made.sendall(data)
            made.settimeout(0.5)
            made.recv(1 << 16)


def half_open(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            made = stack.enter_context(target.connection(target.grpc))
            made.sendall(PREFACE[:11])
        time.sleep(1)


def silent(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            with contextlib.suppress(OSError):  # the balancer, or this process, has its limit
                stack.enter_context(target.connection(target.grpc))
        time.sleep(2)


def wrong_tensors(target: Target) -> None:
    """Each is refused as this request's fault."""
    headers = {"authorization": f"Bearer {read_secret(target.token_file)}"}
    with triton_grpc.InferenceServerClient(target.grpc) as client:
        for name, dtype, shape in (
            ("FEATURES", "FP64", (4, 3)),
            ("FEATURES", "FP32", (4, 2)),
            ("FEATURES", "FP32", (3,)),
            ("NONSENSE", "FP32", (4, 3)),
        ):
            tensor = triton_grpc.InferInput(name, shape, dtype)
            tensor.set_data_from_numpy(np.zeros(shape, dtype=np.float64 if dtype == "FP64" else np.float32))
            with pytest.raises(InferenceServerException) as refused:
                client.infer("exatrkx", [tensor], client_timeout=10, headers=headers)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException):
            client.get_model_metadata("no-such-model", client_timeout=10, headers=headers)


def without_token(target: Target) -> None:
    """No token, and a wrong one: refused before a server hears of it."""
    for headers in ({}, {"authorization": "Bearer " + "0" * 64}):
        with triton_grpc.InferenceServerClient(target.grpc) as client, pytest.raises(InferenceServerException) as no:
            client.infer("exatrkx", [_event()], client_timeout=10, headers=headers)
        assert no.value.status() == "StatusCode.UNAUTHENTICATED"
        answer = requests.post(f"http://{target.http}/v2/models/exatrkx/infer", headers=headers, json={}, timeout=5)
        assert answer.status_code == 401


def beside_the_balancer(target: Target) -> None:
    """A server takes no inference and no change from anyone but the balancer."""
    for server in target.servers:
        with triton_grpc.InferenceServerClient(server) as client:
            for call in (
                lambda one: one.infer("exatrkx", [_event()], client_timeout=10),
                lambda one: one.unload_model("exatrkx", client_timeout=10),
                lambda one: one.register_system_shared_memory("stolen", "/exatrkx", 64, client_timeout=10),
                lambda one: one.update_log_settings({"log_verbose_level": 9}, client_timeout=10),
            ):
                with pytest.raises(InferenceServerException) as refused:
                    call(client)
                assert refused.value.status() == "StatusCode.UNAVAILABLE" and "restricted" in refused.value.message()


def changes_through_the_balancer(target: Target) -> None:
    """Even with the token, nobody unloads a model, reads memory or changes the logs."""
    headers = {"authorization": f"Bearer {read_secret(target.token_file)}"}
    with triton_grpc.InferenceServerClient(target.grpc) as client:
        for call in (
            lambda: client.unload_model("exatrkx", headers=headers, client_timeout=10),
            lambda: client.register_system_shared_memory("stolen", "/exatrkx", 64, headers=headers, client_timeout=10),
            lambda: client.update_log_settings({"log_verbose_level": 9}, headers=headers, client_timeout=10),
        ):
            with pytest.raises(InferenceServerException) as refused:
                call()
            assert refused.value.status() == "StatusCode.PERMISSION_DENIED"


def another_user(target: Target) -> None:
    """Another user of the machine reads neither the token nor the events in Triton's memory."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    segments = list(Path("/dev/shm").glob("exatrkx_*_127.0.17.*"))
    assert segments
    for path in (target.token_file, *segments):
        done = run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(path)], timeout=10)
        assert done.returncode and not done.stdout, path


def _event() -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput("FEATURES", (4, 3), "FP32")
    tensor.set_data_from_numpy(np.zeros((4, 3), dtype=np.float32))
    return tensor


HOSTILE: tuple[Callable[[Target], None], ...] = (
    random_bytes,
    http_1,
    huge_claims,
    half_open,
    silent,
    wrong_tensors,
    without_token,
    beside_the_balancer,
    changes_through_the_balancer,
    another_user,
)


@pytest.mark.parametrize("acts", HOSTILE, ids=lambda act: act.__name__)
def test_a_stranger_costs_no_event(site, tmp_path, acts):
    target, root = site
    settings = Settings(
        server=target.grpc,
        events=root / "events",
        out=tmp_path / "out",
        workers=2,
        in_flight=4,
        request_timeout=20,
        token_file=target.token_file,
    )
    end = time.monotonic() + 120
    with ThreadPoolExecutor(max_workers=1) as pool:
        load = pool.submit(farm.run_clients, settings)
        acts(target)
        while not load.done() and time.monotonic() < end:
            if acts is not silent:
                acts(target)
            time.sleep(0.2)
        report = load.result(timeout=120)
    assert (report.done, report.failures) == (EVENTS, 0)
    headers = {"authorization": f"Bearer {read_secret(target.token_file)}"}
    assert requests.get(f"http://{target.http}/v2/health/ready", headers=headers, timeout=5).ok
    for server in target.servers:
        with contextlib.closing(grpc.insecure_channel(server)) as channel:
            grpc.channel_ready_future(channel).result(timeout=5)
