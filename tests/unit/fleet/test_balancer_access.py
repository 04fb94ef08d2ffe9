"""The access rules of nginx, with a fake Triton behind it; the real one is in tests/real/triton/test_access.py."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from balancers import answering, free_listen, member
from fakes.running import fake_triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from exatrkx_hpc.base.credentials import CredentialFiles, make_secret
from exatrkx_hpc.base.errors import ConfigError, EndpointError, LaunchError
from exatrkx_hpc.base.ownership import parse_endpoint_id
from exatrkx_hpc.base.process import run
from exatrkx_hpc.base.process_id import boot_id, host_name
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import BalancerSection
from exatrkx_hpc.farm import Job, connect, endpoint_access, watch
from exatrkx_hpc.fleet.balancer import certificate as certificate_module
from exatrkx_hpc.fleet.balancer.access import Access, is_loopback, rules, secret_files
from exatrkx_hpc.fleet.balancer.balancers import balancer_of
from exatrkx_hpc.fleet.balancer.base import Listen
from exatrkx_hpc.fleet.balancer.certificate import given_certificate, made_certificate
from exatrkx_hpc.fleet.balancer.limits import limits_of
from exatrkx_hpc.fleet.balancer.nginx import Nginx, render_main, render_upstream
from exatrkx_hpc.fleet.credentials import EndpointAccess, credential_files, endpoint_at
from exatrkx_hpc.fleet.endpoint import EndpointRecord, identity_at, point_latest, triton_version, write_endpoint
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.work.inference.check_workload import check_workload
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.workloads.table import workload

LIMITS = limits_of(2, open_files=1024)
TOKEN, KEY = "t" * 40, "k" * 40
HEADERS = {"authorization": f"Bearer {TOKEN}"}

pytestmark = pytest.mark.usefixtures("nginx")

Start = Callable[..., Listen]


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Start nginx with this access for these members; it is stopped at the end."""
    running: list[Nginx] = []

    def _start(access: Access, *members) -> Listen:
        running.append(Nginx(tmp_path / "nginx", replace(free_listen(), access=access)))
        running[-1].start(members)
        return running[-1].listen

    yield _start
    for one in running:
        one.stop(grace=1)


def code(server: str, *, hold: float = 10, **metadata: str) -> grpc.StatusCode:
    with grpc.insecure_channel(server, options=[("grpc.enable_retries", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=hold, metadata=tuple(metadata.items()))
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_golden_with_everything(golden):
    """The secrets are not in it, so that it may be shown."""
    access = Access(token=TOKEN, server_key=KEY, certificate="C", private_key="P", requests=4096, rate=10000)
    listen = Listen(host="10.0.0.1", grpc_port=9191, http_port=9190, access=access)
    text = render_main(listen, LIMITS, instance="i", version=(1, 25, 1))
    assert TOKEN not in text and KEY not in text
    golden("nginx.guarded.conf", text)
    golden("nginx.secrets.conf", secret_files(access)["secrets.conf"])


def test_no_text_of_the_access_has_a_secret():
    access = Access(token=TOKEN, server_key=KEY, certificate="CERT", private_key="PRIVATE")
    listen = replace(free_listen(), access=access)
    assert not [secret for secret in (TOKEN, KEY, "PRIVATE") if secret in f"{listen!r} {rules(access)}"]


@pytest.mark.parametrize("token", ["a.b+c/d~e-f_0123456", "x" * 512])
def test_every_character_of_a_token_means_itself(start, token):
    with answering("one", "127.0.6.1") as one:
        url = f"http://{start(Access(token=token, server_key=KEY), one).http}/v2"
        for sent, status in ((token, 200), (token.replace("a", "b", 1).replace("x", "y", 1), 401), ("x" * 511, 401)):
            assert requests.get(url, headers={"authorization": f"Bearer {sent}"}, timeout=10).status_code == status


def test_the_files_with_secrets_are_closed(start, tmp_path):
    access = Access(token=TOKEN, server_key=KEY)
    start(access)
    for path in (tmp_path / "nginx").rglob("*"):
        if path.is_file() and TOKEN in path.read_text(errors="replace"):
            assert (path.name, stat.S_IMODE(path.stat().st_mode)) == ("secrets.conf", 0o600)


def test_grpc_clients_are_told_in_words_of_grpc(start):
    with fake_triton() as fake:
        there = member("one", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        listen = start(Access(token=TOKEN, server_key=KEY), there)
        assert code(listen.grpc) is grpc.StatusCode.UNAUTHENTICATED
        assert code(listen.grpc, **HEADERS) is grpc.StatusCode.OK


@contextlib.contextmanager
def recording(address: str) -> Iterator[tuple[Listen, list[bytes]]]:
    """A server that keeps the head of each request, and answers 200."""
    heads: list[bytes] = []
    with socket.create_server((address, 0)) as door, ThreadPoolExecutor(1) as pool:
        door.settimeout(20)

        def serve() -> None:
            connection, _ = door.accept()
            with connection:
                connection.settimeout(20)
                heads.append(connection.recv(1 << 16))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

        done = pool.submit(serve)
        yield member("recording", address, http_port=door.getsockname()[1]), heads
        done.result(20)


def test_a_server_gets_its_key_and_neither_the_token_nor_a_key_of_the_client(start):
    with recording("127.0.6.1") as (one, heads):
        listen = start(Access(token=TOKEN, server_key=KEY), one)
        told = {**HEADERS, "exatrkx-key": "of-the-client"}
        assert requests.get(f"http://{listen.http}/v2", headers=told, timeout=10).text == "ok"
    head = heads[0].decode().lower()
    assert f"exatrkx-key: {KEY}" in head
    assert TOKEN not in head and "authorization" not in head and "of-the-client" not in head


def test_the_limits_count_admitted_calls_only(start):
    """As docs/security.md says: strangers on the same login node cannot use up the requests of those with a token."""
    with fake_triton() as fake:
        there = member("one", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        listen = start(Access(token=TOKEN, server_key=KEY, requests=1, rate=1), there)
        assert {code(listen.grpc) for _ in range(6)} == {grpc.StatusCode.UNAUTHENTICATED}
        assert code(listen.grpc, **HEADERS) is grpc.StatusCode.OK


def test_too_many_requests_of_one_address_are_refused_in_words_that_clients_repeat(start):
    with fake_triton() as fake:
        there = member("one", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        listen = start(Access(server_key=KEY, rate=1), there)
        found = {code(listen.grpc) for _ in range(6)}
    assert found == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    with answering("one", "127.0.6.1") as one:
        url = f"http://{start(Access(server_key=KEY, rate=1), one).http}/v2"
        assert {requests.get(url, timeout=10).status_code for _ in range(6)} == {200, 429}


def test_clients_within_the_limits_notice_nothing(start):
    with answering("one", "127.0.6.1") as one, ThreadPoolExecutor(16) as pool:
        url = f"http://{start(Access(server_key=KEY, requests=4096, rate=10000), one).http}/v2"
        assert set(pool.map(lambda _: requests.get(url, timeout=20).status_code, range(200))) == {200}


def test_a_client_that_says_nothing_is_sent_away_and_the_others_are_not(start):
    with answering("one", "127.0.6.1") as one, contextlib.ExitStack() as stack:
        listen = start(Access(token=TOKEN, server_key=KEY), one)
        silent = []
        for port in (listen.grpc_port, listen.http_port):
            for _ in range(50):
                silent.append(stack.enter_context(socket.create_connection((listen.host, port), 10)))
        silent[0].sendall(b"\x00\xff" * 4096)  # random bytes
        silent[1].sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\ncontent-length: 1073741824\r\n")
        assert requests.get(f"http://{listen.http}/v2", headers=HEADERS, timeout=10).status_code == 200
        for connection in silent:
            connection.settimeout(30)
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 16):
                    pass


def test_the_default_of_a_section_is_a_token(tmp_path):
    folder = tmp_path / "7" / "nginx"
    folder.mkdir(parents=True)
    listen = balancer_of(BalancerSection(grpc_port=0, http_port=0, advertise="login.site"), folder).listen
    assert listen.access.kind == "token" and listen.access.token == FarmDir(tmp_path).token.read_text().strip()
    assert listen.grpc == f"login.site:{listen.grpc_port}"
    section = BalancerSection(grpc_port=0, http_port=0, access="open")
    assert balancer_of(section, folder).listen.access.kind == "open"


# TLS


def test_a_made_certificate_has_every_name_and_stays(tmp_path):
    farm = FarmDir(tmp_path)
    first = made_certificate(farm, ["10.0.0.1", "login01", "localhost"])
    assert made_certificate(farm, ["login01"]) == first
    for name in ("certificate.key", "endpoint.key"):
        assert stat.S_IMODE((farm.secrets / name).stat().st_mode) == 0o600
    authority = farm.certificate.read_text()
    more = made_certificate(farm, ["login02"])
    assert more.public.startswith("# 10.0.0.1 login01 localhost login02\n")
    assert "PRIVATE" not in repr(more)
    (farm.secrets / "endpoint.pem").write_text("# 10.0.0.1 login01 localhost login02\ntorn: BEGIN CERTIFICATE")
    assert "END CERTIFICATE" in made_certificate(farm, ["login02"]).public
    assert farm.certificate.read_text() == authority
    farm.certificate_key.unlink()
    assert made_certificate(farm, ["login02"]).public.startswith("# login02\n")
    assert farm.certificate.read_text() != authority


def test_an_authority_that_openssl_cannot_read_is_not_replaced(tmp_path):
    """Clients have pinned it; only its end is a reason to make another."""
    farm = FarmDir(tmp_path)
    first = made_certificate(farm, ["localhost"])
    authority = farm.certificate.read_text()
    farm.certificate.write_text("")
    with pytest.raises(EndpointError, match=r"openssl cannot read .*restore the file"):
        made_certificate(farm, ["localhost"])
    farm.certificate.write_text(authority)
    assert made_certificate(farm, ["localhost"]) == first


def test_an_authority_that_ends_soon_is_replaced_with_all_that_it_signed(tmp_path, monkeypatch):
    farm = FarmDir(tmp_path)
    made_certificate(farm, ["localhost"])
    authority = farm.certificate.read_text()
    monkeypatch.setattr(certificate_module, "_SOON", 826 * 86400)
    with monkeypatch.context() as broken:
        broken.setattr(certificate_module, "_CURVE", ("-algorithm", "none"))
        with pytest.raises(EndpointError, match="openssl cannot make a certificate"):
            made_certificate(farm, ["login02"])
    assert farm.certificate.read_text() == authority and (farm.secrets / "endpoint.key").exists(), "none was made"
    assert made_certificate(farm, ["login02"]).public.startswith("# login02\n")
    assert farm.certificate.read_text() != authority
    assert sorted(path.name for path in farm.secrets.iterdir() if path.name.startswith(".")) == []


def test_a_certificate_that_another_monitor_makes_is_not_waited_for_without_end(tmp_path, monkeypatch):
    farm = FarmDir(tmp_path)
    first = made_certificate(farm, ["localhost"])
    monkeypatch.setattr(certificate_module, "_PATIENCE", 0.2)
    with (farm.secrets / "certificate.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EndpointError, match=r"another monitor has held .*certificate\.lock for 0\.2 s"):
            made_certificate(farm, ["localhost"])
    assert made_certificate(farm, ["localhost"]) == first


def trusts(server: str, certificate: str, name: str = "127.0.0.1") -> bool:
    context = ssl.create_default_context(cadata=certificate)
    host, _, port = server.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name):
                return True
        except ssl.SSLError:
            return False


def test_a_client_that_pins_the_farm_accepts_each_of_its_certificates_and_no_other(start, tmp_path):
    farm, stranger = FarmDir(tmp_path / "farm"), FarmDir(tmp_path / "stranger")
    made_certificate(farm, ["127.0.0.1"])
    pinned = farm.certificate.read_text()
    made_certificate(stranger, ["127.0.0.1"])
    new = made_certificate(farm, ["login02"])
    listen = start(Access(server_key=KEY, certificate=new.public, private_key=new.private))
    assert trusts(listen.grpc, pinned) and trusts(listen.grpc, pinned, "login02")
    assert not trusts(listen.grpc, pinned, "elsewhere")
    assert not trusts(listen.grpc, stranger.certificate.read_text())
    assert not requests.get(f"http://{listen.http}/v2", timeout=10).ok, "no clear text"


def signed_by_an_authority(folder: Path) -> tuple[Path, Path]:
    """Make an authority and a certificate for 127.0.0.1 that it signs, as a site does; return certificate and key."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for words in (
        ("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=a site", "-days", "2"),
        ("req", *curve, "-keyout", "key", "-out", "request", "-subj", "/CN=login01"),
        (
            *("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", "pem", "-extfile", "names", "-days", "2"),
        ),
    ):
        done = run(["openssl", *words], cwd=folder)
        assert done.returncode == 0, done.stderr
    (folder / "key").chmod(0o600)
    return folder / "pem", folder / "key"


def test_a_client_pins_a_given_certificate_that_an_authority_has_signed(start, tmp_path):
    given = given_certificate(*signed_by_an_authority(tmp_path))
    pinned = str(tmp_path / "pem")
    with fake_triton() as fake, answering('{"version": "2.60.0"}', "127.0.0.1") as web:
        ports = {"grpc_port": int(fake.server.rpartition(":")[2]), "http_port": web.record.http_port}
        there = member("one", "127.0.0.1", **ports)
        access = Access(token=TOKEN, server_key=KEY, certificate=given.public, private_key=given.private)
        listen = start(access, there)
        assert parse_endpoint_id(identity_at(listen.http, pinned)) is not None
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert triton_version(listen.http, pinned, headers=headers) == "2.60.0"
        (tmp_path / "token").write_text(TOKEN)
        (tmp_path / "token").chmod(0o600)
        with Endpoint(listen.grpc, token_file=tmp_path / "token", certificate=pinned) as endpoint:
            assert endpoint.find_tracks(np.zeros((3, 3), np.float32)).shape == (3,)
    made_certificate(FarmDir(tmp_path / "stranger"), ["127.0.0.1"])
    assert identity_at(listen.http, str(FarmDir(tmp_path / "stranger").certificate)) == ""
    assert identity_at(listen.http, str(tmp_path / "missing.pem")) == ""


def test_a_given_certificate_is_used_as_it_is(tmp_path):
    made = made_certificate(FarmDir(tmp_path), ["127.0.0.1"])
    public, private = tmp_path / "secrets" / "endpoint.pem", tmp_path / "secrets" / "endpoint.key"
    assert given_certificate(public, private) == made
    private.chmod(0o640)
    with pytest.raises(ConfigError, match="open to other users"):
        given_certificate(public, private)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.pem"):
        given_certificate(tmp_path / "none.pem", tmp_path / "none.pem")


def test_tls_given_needs_both_files_and_only_then():
    with pytest.raises(ValueError, match="needs certificate and certificate_key"):
        BalancerSection(tls="given")
    with pytest.raises(ValueError, match='only "given" uses them'):
        BalancerSection(certificate="/x.pem", certificate_key="/x.key")


@pytest.mark.parametrize(
    ("host", "answer"), [("127.0.0.1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("nid1", False)]
)
def test_loopback(host, answer):
    assert is_loopback(host) is answer


def test_the_upstream_has_no_secret():
    assert KEY not in render_upstream([member()], LIMITS)


# The credentials for an endpoint


def endpoint_of(farm: FarmDir, job: str, **facts: object) -> EndpointRecord:
    farm.job(job).path.mkdir(parents=True)
    known = {"grpc": f"login01:{job}", "http": "login01:1", "prometheus": "", "access": "token"}
    kept = {"monitor_pid": 1, "updated": time.time()}
    record = EndpointRecord.model_validate({"job": job, "metrics": {}, "ready": 1, **known, **kept, **facts})
    write_endpoint(farm.job(job), record)
    point_latest(farm.job(job))
    return record


def test_a_farms_own_endpoint_gets_its_token_and_a_stranger_gets_none(tmp_path):
    farm = FarmDir(tmp_path)
    first, second = endpoint_of(farm, "7"), endpoint_of(farm, "8", certificate=str(tmp_path / "c.pem"), access="open")
    assert credential_files(farm, first) == CredentialFiles(token=farm.token)
    assert credential_files(farm, second) == CredentialFiles(certificate=tmp_path / "c.pem")
    assert endpoint_at(farm, "login01:7") == first
    assert endpoint_at(farm, "login01:9") is endpoint_at(FarmDir(tmp_path / "none"), "login01:7") is None


def test_a_stranger_at_the_address_of_an_ended_endpoint_gets_no_token(start, tmp_path):
    """Its monitor and its balancer are gone, and another user's balancer has taken the port."""
    root = FarmDir(tmp_path / "farm")
    farm = resolve(flags={"site": "local", "run_root": str(root)}, ambient=False).farm
    theirs = start(Access(token=TOKEN, server_key=KEY))
    silent = {"monitor_pid": 1 << 22, "monitor_started": 1, "updated": 0.0, "host": host_name(), "boot": boot_id()}
    endpoint_of(root, "7", grpc=theirs.grpc, http=theirs.http, identity="exatrkx-00000000/7/a", **silent)
    assert endpoint_access(farm, theirs.grpc) == EndpointAccess(address=theirs.grpc)
    ours = f"{theirs.farm}/{theirs.job}/a"
    endpoint_of(root, "8", grpc=theirs.grpc, http=theirs.http, identity=ours, **silent)
    assert endpoint_access(farm, theirs.grpc).files.token == root.token, "the balancer says that it is this farm's"


def test_clients_say_whose_endpoint_they_mean(start, tmp_path):
    root = FarmDir(tmp_path / "farm")
    farm = resolve(flags={"site": "local", "run_root": str(root)}, ambient=False).farm
    listen = start(Access(token=make_secret(root.token), server_key=KEY))
    endpoint_of(root, "7", grpc=listen.grpc, identity="exatrkx-00000000/7/a")
    assert endpoint_access(farm) == endpoint_access(farm, listen.grpc)
    with (
        connect(flags={"site": "local", "run_root": str(root), "clients.patience": 0.1}) as endpoint,
        pytest.raises(EndpointError, match="expected exatrkx-00000000, job 7"),
    ):
        endpoint.find_tracks(np.zeros((3, 3), np.float32))
    access = endpoint_access(farm, listen.grpc)
    answered = check_workload(
        workload("exatrkx", ()), server=listen.grpc, identity=access.identity, credentials=access.files.read()
    )[-1]
    assert "expected exatrkx-00000000, job 7" in answered.fault


def login(files: CredentialFiles) -> EndpointAccess:
    return EndpointAccess(address="login01:7", job="7", files=files)


def test_files_that_a_person_names_take_precedence(tmp_path):
    endpoint_of(FarmDir(tmp_path), "7")
    farm = resolve(flags={"site": "local", "run_root": str(tmp_path)}, ambient=False).farm
    own = CredentialFiles(token=FarmDir(tmp_path).token)
    assert endpoint_access(farm) == endpoint_access(farm, "login01:7") == login(own)
    named = CredentialFiles(token=tmp_path / "mine", certificate=tmp_path / "c.pem")
    assert endpoint_access(farm, given=named) == login(named)
    assert endpoint_access(farm, "elsewhere:7", given=named) == EndpointAccess(address="elsewhere:7", files=named)
    with pytest.raises(LaunchError, match="no job '9'"):
        endpoint_access(farm, job="9")


def test_connect_shows_the_farms_token(start, tmp_path):
    root = FarmDir(tmp_path / "farm")
    with fake_triton() as fake:
        there = member("one", "127.0.0.1", grpc_port=int(fake.server.rpartition(":")[2]))
        listen = start(Access(token=make_secret(root.token), server_key=KEY), there)
        endpoint_of(root, "7", grpc=listen.grpc)
        with connect(flags={"site": "local", "run_root": str(root)}) as endpoint:
            assert endpoint.find_tracks(np.zeros((3, 3), np.float32)).shape == (3,)
        with pytest.raises(EndpointError, match="refuses the token"), Endpoint(listen.grpc) as stranger:
            stranger.find_tracks(np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(("site", "host", "told"), [("generic", "127.0.0.1", True), ("local", "127.0.0.1", False)])
def test_an_open_endpoint_on_a_site_is_told_at_each_start(tmp_path, site, host, told):
    flags = {"site": site, "run_root": str(tmp_path), "balancer.host": host, "balancer.access": "open"}
    farm = resolve(flags={**flags, "monitor.prometheus": False}, ambient=False).farm
    for _ in range(2):
        news = []
        watch(Job(id="7", farm=farm, scheduler=None), tell=news.append)
        assert [one.code for one in news] == ["endpoint-unguarded"] * told
