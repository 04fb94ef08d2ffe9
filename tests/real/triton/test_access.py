"""Who gets in: a real farm with a token, its balancer, its servers, and everything that it leaves on disk."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc as triton
from repositories import tiny_repository
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.credentials import CredentialFiles, read_secret
from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.balancer.certificate import made_certificate
from exatrkx_hpc.fleet.credentials import EndpointAccess
from exatrkx_hpc.fleet.endpoint import EndpointRecord
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.secrets import key_headers
from exatrkx_hpc.tracking.simulation.synthetic import write_events
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.inference.probe import ask_model
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.run.run import Settings

pytestmark = pytest.mark.usefixtures("triton", "nginx")

HITS = np.full((2, 3), 0.1, dtype=np.float32)


def farm_of(run_root: Path, **more: object) -> Farm:
    """A farm with a model that starts fast: what it answers does not matter here."""
    tiny_repository(run_root / "models")
    values = {
        "site": "local",
        "run_root": str(run_root),
        "server.model_repository": str(run_root / "models"),
        "cluster.local_address": "127.0.9.1",
        "job.nodes": 1,
        "server.drain": 1,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "balancer.access": "token",
        "monitor.prometheus": False,
    }
    return resolve(flags={**values, **{key.replace("__", "."): value for key, value in more.items()}}).farm


@dataclass(frozen=True)
class Guarded:
    """A farm that asks for a token."""

    farm: Farm
    job: farm.Job
    watch: Watch

    @property
    def record(self) -> EndpointRecord:
        return farm.endpoint_record(self.farm, self.job.id)

    @property
    def server(self) -> ServerRecord:
        return read_records(self.job.run_dir)[0]

    @property
    def direct(self) -> str:
        return f"{self.server.address}:{self.server.grpc_port}"

    @property
    def token(self) -> str:
        return read_secret(FarmDir.of(self.farm).token)

    @property
    def key(self) -> str:
        return read_secret(FarmDir.of(self.farm).server_key)

    @property
    def files(self) -> CredentialFiles:
        return farm.endpoint_access(self.farm, job=self.job.id).files


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Guarded]:
    what = farm_of(tmp_path_factory.mktemp("guarded"))
    with farm.running(what, wait=180) as (job, watch):
        yield Guarded(what, job, watch)


def status(server: str, call: Callable[[service_pb2_grpc.GRPCInferenceServiceStub], object]) -> grpc.StatusCode:
    """Return the status with which a client that never repeats is answered."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server, options=options) as channel:
        try:
            call(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def inference(hits: np.ndarray = HITS) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="exatrkx")
    request.inputs.add(name="FEATURES", datatype="FP32", shape=hits.shape)
    request.raw_input_contents.append(hits.tobytes())
    return request


def infer(server: str, metadata: tuple[tuple[str, str], ...] = (), hits: np.ndarray = HITS) -> grpc.StatusCode:
    return status(server, lambda stub: stub.ModelInfer(inference(hits), timeout=30, metadata=metadata))


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer {other}", "Bearer {token}x", "Bearer x{token}", "{token}", "Basic {token}", "Bearer {key}"],
)
def test_a_call_without_the_farms_token_reaches_no_server(up, authorization):
    text = authorization.format(token=up.token, other="0" * 64, key=up.key)
    metadata = (("authorization", text),) if text else ()
    assert infer(up.record.grpc, metadata) is grpc.StatusCode.UNAUTHENTICATED
    answer = requests.get(f"http://{up.record.http}/v2", headers=dict(metadata), timeout=10)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_an_event_of_many_megabytes_without_a_token_is_refused_in_the_words_of_grpc(up):
    assert infer(up.record.grpc, hits=np.zeros((2_000_000, 3), np.float32)) is grpc.StatusCode.UNAUTHENTICATED


def test_two_tokens_in_one_call_let_nobody_in_without_the_right_one(up):
    wrong, right = ("authorization", f"Bearer {'0' * 64}"), ("authorization", f"Bearer {up.token}")
    assert infer(up.record.grpc, (wrong, wrong)) is not grpc.StatusCode.OK
    assert infer(up.record.grpc, (wrong, right)) is not grpc.StatusCode.OK


def test_with_the_token_a_call_passes_over_both_protocols(up):
    metadata = (("authorization", f"Bearer {up.token}"),)
    assert infer(up.record.grpc, metadata) is grpc.StatusCode.OK
    body = {"inputs": [{"name": "FEATURES", "datatype": "FP32", "shape": [2, 3], "data": HITS.ravel().tolist()}]}
    answer = requests.post(
        f"http://{up.record.http}/v2/models/exatrkx/infer", json=body, headers=dict(metadata), timeout=30
    )
    assert answer.json()["outputs"][0]["shape"] == [2]


def test_a_plain_triton_client_sends_one_header(up):
    headers = {"authorization": f"Bearer {up.token}"}
    with triton.InferenceServerClient(up.record.grpc) as client:
        assert client.is_model_ready("exatrkx", headers=headers)
        assert client.get_model_metadata("exatrkx", headers=headers).name == "exatrkx"
        assert client.get_inference_statistics("exatrkx", headers=headers).model_stats
        assert {model.name for model in client.get_model_repository_index(headers=headers).models} >= {"exatrkx"}
        with pytest.raises(InferenceServerException, match="refuses the token"):
            client.is_server_ready()


#: Calls that change a server or read its memory, each as (gRPC method, request).
DANGEROUS = {
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="exatrkx"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="exatrkx"),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=8),
    "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(name="x", byte_size=8),
    "CudaSharedMemoryUnregister": service_pb2.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}
#: The same over HTTP. The last ones would be allowed paths for a balancer that decodes them before it looks.
DANGEROUS_PATHS = [
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/exatrkx/trace/setting",
    "/v2/repository/models/exatrkx/load",
    "/v2/repository/models/exatrkx/unload",
    "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/region/x/register",
    "/v2/systemsharedmemory/unregister",
    "/v2/cudasharedmemory/status",
    "/v2/cudasharedmemory/region/x/register",
    "/v2/systemsharedmemory/region/..%2f..%2f..%2fv2%2fmodels/register",
    "/v2/repository/models/..%2f..%2f..%2fv2%2fmodels/load",
    "/v2/health/live/../../logging",
    "/v2//logging",
]


@pytest.mark.parametrize("method", DANGEROUS)
def test_a_dangerous_call_is_refused_at_the_balancer_and_at_the_server(up, method):
    request = DANGEROUS[method]
    ours = (("authorization", f"Bearer {up.token}"),)
    assert (
        status(up.record.grpc, lambda stub: getattr(stub, method)(request, timeout=10, metadata=ours))
        is grpc.StatusCode.PERMISSION_DENIED
    )
    assert status(up.direct, lambda stub: getattr(stub, method)(request, timeout=10)) is grpc.StatusCode.UNAVAILABLE, (
        "Triton's word for a restricted call"
    )


def raw(base: str, path: str, headers: dict[str, str]) -> int:
    """Return the status of a POST of exactly this path: no client tidies it."""
    with requests.Session() as session:
        request = session.prepare_request(requests.Request("POST", f"http://{base}/", headers=headers, data=b"{}"))
        request.url = f"http://{base}{path}"
        return session.send(request, timeout=10).status_code


@pytest.mark.parametrize("path", DANGEROUS_PATHS)
def test_a_dangerous_path_is_refused_at_the_balancer_and_at_the_server(up, path):
    assert raw(up.record.http, path, {"authorization": f"Bearer {up.token}"}) in (400, 403)
    assert raw(f"{up.server.address}:{up.server.http_port}", path, {}) in (400, 403, 404)


def test_a_server_takes_inference_through_the_balancer_alone_and_probes_from_everyone(up):
    assert infer(up.direct) is grpc.StatusCode.UNAVAILABLE
    assert infer(up.direct, tuple(key_headers(up.key, grpc=True).items())) is grpc.StatusCode.OK
    base = f"http://{up.server.address}:{up.server.http_port}/v2"
    assert requests.post(f"{base}/models/exatrkx/infer", data=b"{}", timeout=10).status_code == 403
    assert requests.get(f"{base}/models/stats", timeout=10).status_code == 403
    assert requests.get(f"{base}/health/ready", timeout=10).status_code == 200
    assert requests.get(base, timeout=10).json()["name"] == up.server.instance
    metadata = service_pb2.ServerMetadataRequest()
    assert status(up.direct, lambda stub: stub.ServerMetadata(metadata, timeout=10)) is grpc.StatusCode.OK


def test_the_models_memory_is_closed_to_other_users(up):
    """Triton creates it with mode 0644, whatever the umask; the server's script closes it within a second."""

    def modes() -> set[int]:
        segments = Path("/dev/shm").glob(f"exatrkx_{up.job.id}_{up.server.server}_*")
        return {stat.S_IMODE(segment.stat().st_mode) for segment in segments}

    until(lambda: modes() == {0o600}, what="segments with mode 0600")


def test_our_clients_read_the_token_of_the_farm_by_themselves(up, tmp_path):
    write_events(tmp_path / "events", events=4, tracks=5, seed=1)
    access = farm.endpoint_access(up.farm)
    address, files = access.address, access.files
    settings = Settings(
        server=address, token_file=files.token, events=tmp_path / "events", out=tmp_path / "out", workers=2
    )
    report = farm.run_clients(settings, farm=up.farm)
    assert (report.done, report.failed) == (4, ())
    assert access.identity and farm.endpoint_access(up.farm, address) == access, "given by hand, it is still the farm's"
    assert farm.endpoint_access(up.farm, "127.0.0.1:1") == EndpointAccess(address="127.0.0.1:1"), (
        "a stranger gets no token"
    )
    (tmp_path / "hits.csv").write_text("0.1,0.1,0.1\n")
    credentials = files.read()
    reply = ask_model(address, "exatrkx", [str(tmp_path / "hits.csv")], credentials=credentials)
    assert reply.outputs[0].shape == (1,)
    with Endpoint(address, token_file=files.token) as endpoint:
        assert endpoint.find_tracks(HITS).shape == (2,)
    for left in (tmp_path / "out").rglob("*"):
        assert left.is_dir() or up.token.encode() not in left.read_bytes(), left


@pytest.mark.parametrize("file", ["", "wrong"])
def test_a_missing_or_wrong_token_is_one_line_at_once(up, tmp_path, file):
    chosen = None
    if file:
        chosen = tmp_path / file
        chosen.write_text("0" * 64)
        chosen.chmod(0o600)

    async def ask() -> None:
        async with Client(up.record.grpc, patience=600, credentials=CredentialFiles(token=chosen).read()) as client:
            await client.infer(HITS)

    with pytest.raises(EndpointError, match=r"refuses the token; .*--token-file"):
        asyncio.run(asyncio.wait_for(ask(), 60))
    with pytest.raises(EndpointError, match=r"refuses the token"), Endpoint(up.record.grpc, token_file=chosen) as one:
        one.check(600)


def test_the_secrets_are_in_their_own_files_alone(up):
    """No argument of a program but that of tritonserver, which takes its key nowhere else, and no other file."""
    root = Path(up.farm.run_root)
    allowed = {
        root / "secrets" / "token",
        root / "secrets" / "server-key",
        up.job.run_dir.balancer("nginx") / "secrets.conf",
        up.job.run_dir.balancer("nginx") / "candidate" / "secrets.conf",
    }
    for path in (path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes()
        if up.token.encode() in content or up.key.encode() in content:
            assert path in allowed, path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((root / "secrets").stat().st_mode) == 0o700
    shown = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    assert not [line for line in shown.values() if up.token in line]
    assert {re.search(r"tritonserver", line) is not None for line in shown.values() if up.key in line} == {True}
    for process in psutil.Process().children(recursive=True):
        assert not {up.token, up.key} & set(" ".join(process.environ().values()).split())


def test_with_open_access_inference_is_open_and_the_dangerous_calls_are_not(tmp_path):
    what = farm_of(tmp_path, balancer__access="open", cluster__local_address="127.0.9.20")
    with farm.running(what, wait=180) as (job, watch):
        server = read_records(job.run_dir)[0]
        direct = f"{server.address}:{server.grpc_port}"
        until(lambda: infer(watch.endpoint) is grpc.StatusCode.OK, what="the server behind the endpoint")
        assert infer(direct) is grpc.StatusCode.OK
        for method, request in DANGEROUS.items():
            answers = {
                status(place, lambda stub, m=method, r=request: getattr(stub, m)(r, timeout=10))
                for place in (watch.endpoint, direct)
            }
            assert answers == {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE}, method


def test_with_tls_our_clients_pin_the_farms_certificate(up, tmp_path):
    """Another monitor of the same servers: the first one makes room."""
    up.watch.stop()
    with_tls = up.farm.model_copy(update={"balancer": up.farm.balancer.model_copy(update={"tls": "auto"})})
    watch = farm.watch(farm.find_job(with_tls, up.job.id))
    watch.start()
    try:
        watch.wait_ready(1, timeout=60)
        access = farm.endpoint_access(with_tls)
        address, files = access.address, access.files
        assert files.certificate == FarmDir.of(with_tls).certificate
        with Endpoint(address, token_file=files.token, certificate=files.certificate) as endpoint:
            assert endpoint.find_tracks(HITS).shape == (2,)
        record = farm.endpoint_record(with_tls)
        headers = files.read().headers
        url = f"https://{record.http}/v2"
        assert requests.get(url, headers=headers, verify=str(files.certificate), timeout=10).status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(url, headers=headers, timeout=10)
        with (
            triton.InferenceServerClient(address, ssl=True, root_certificates=str(files.certificate)) as client,
        ):
            assert client.is_server_ready(headers=headers)
        other = tmp_path / "other"
        made_certificate(FarmDir(other), ["127.0.0.1"])
        with (
            pytest.raises(EndpointError),
            Endpoint(address, token_file=files.token, certificate=FarmDir(other).certificate, patience=1) as stranger,
        ):
            stranger.check(3)
    finally:
        watch.stop()
