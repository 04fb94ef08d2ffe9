"""An address that cannot be an endpoint is told at once, with the endpoint that was meant."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import complaint, exatrkx_hpc
from fakes.running import fake_triton, free_port

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.work.inference.address import require_grpc

#: What Triton says of itself; the name is that of the server.
TRITON = '{"name":"n1","extensions":["statistics"]}'


@contextlib.contextmanager
def web(*, port: int = 0, **pages: str) -> Iterator[int]:
    """Serve these pages over HTTP/1, `v2="..."`; yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = pages.get(self.path[1:])
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_grpc_port_passes():
    with fake_triton() as fake:
        require_grpc(fake.server)


@pytest.mark.parametrize(
    ("pages", "kind", "step"),
    [
        ({"v2": TRITON}, "HTTP", 1),
        ({"metrics": "nv_inference_count 1\n"}, "metrics", -1),
    ],
)
def test_triton_s_other_ports_are_told_with_the_grpc_port_beside(pages: dict[str, str], kind: str, step: int):
    with fake_triton() as fake:
        grpc = int(fake.server.rpartition(":")[2])
        with web(port=grpc - step, **pages), pytest.raises(EndpointError) as caught:
            require_grpc(f"127.0.0.1:{grpc - step}")
    assert str(caught.value) == (
        f"--server 127.0.0.1:{grpc - step} is a port for {kind}, not for gRPC; use --server 127.0.0.1:{grpc}"
    )


def test_without_a_grpc_port_beside_it_the_usual_ones_are_named():
    with (
        web(v2=TRITON) as port,
        pytest.raises(EndpointError, match="usually 8001, or 9191"),
    ):
        require_grpc(f"127.0.0.1:{port}")


def test_an_address_of_the_farm_is_told_with_its_endpoint():
    with web() as port, pytest.raises(EndpointError, match=r"; use --server 127\.0\.0\.1:9191$"):
        require_grpc(f"127.0.0.1:{port}", meant={f"127.0.0.1:{port}": "127.0.0.1:9191"})


def test_what_is_not_certain_passes():
    require_grpc(f"127.0.0.1:{free_port()}")
    with web(index="hello") as port:
        require_grpc(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=lambda: [silent.accept()[0].close() for _ in range(3)], daemon=True).start()
        require_grpc(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(EndpointError, match=r"the host of --server nid1:8001 does not resolve \(Name or service not"):
        require_grpc("nid1:8001")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        require_grpc("nid1")


def test_the_command_says_so_before_it_starts_workers(tmp_path: Path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_0.csv").write_text("0.1,0.2,0.3\n")
    with web(v2=TRITON) as port:
        done = exatrkx_hpc("run-clients", "-s", f"127.0.0.1:{port}", cwd=tmp_path)
    assert "is a port for HTTP, not for gRPC" in complaint(done, 5)
    assert not (tmp_path / "results").exists()
