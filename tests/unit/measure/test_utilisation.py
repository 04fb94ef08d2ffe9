"""How busy servers are, by what they say of it themselves."""

from __future__ import annotations

import http.server
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from waiting import until

from exatrkx_hpc.measure.utilisation import watched

CPU = "# TYPE nv_cpu_utilization gauge\nnv_cpu_utilization {cpu}\n"
GPUS = (
    '# TYPE nv_gpu_utilization gauge\nnv_gpu_utilization{{gpu_uuid="a"}} 0.2\nnv_gpu_utilization{{gpu_uuid="b"}} 0.6\n'
)


@contextmanager
def serving(text: str) -> Iterator[str]:
    """A server that says this of its metrics; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_the_means_are_over_servers_and_gpus_and_a_silent_one_is_left_out():
    with (
        serving((CPU + GPUS).format(cpu=0.25)) as one,
        serving(CPU.format(cpu=0.75)) as other,
        watched([one, other, "127.0.0.1:1"], interval=0.01) as busy,
    ):
        until(lambda: abs(busy().cpu - 0.5) < 1e-9, what="a look at both servers")
        assert abs(busy().gpu - 0.4) < 1e-9


@pytest.mark.slow
def test_a_value_that_is_no_share_does_not_spoil_the_mean():
    odd = "".join(
        f'nv_gpu_utilization{{gpu_uuid="{n}"}} {value}\n' for n, value in enumerate(("NaN", "-1", "+Inf", 55))
    )
    with (
        serving((CPU + GPUS).format(cpu="NaN") + odd) as spoilt,
        serving(CPU.format(cpu=0.75)) as good,
        watched([spoilt, good], interval=0.01) as busy,
    ):
        until(lambda: busy().cpu == 0.75 and abs(busy().gpu - 0.4) < 1e-9, what="a look at both servers")


def test_what_no_server_says_is_unknown():
    with serving("nv_cpu_utilization {\n") as spoilt, watched([spoilt, "127.0.0.1:1"], interval=0.01) as busy:
        assert math.isnan(busy().cpu) and math.isnan(busy().gpu)
