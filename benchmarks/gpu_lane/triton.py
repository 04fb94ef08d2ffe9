"""A real Triton with the fused model on the device, from the tar file of `pack_triton.sh`, with requests over HTTP.

The client is Python's own http.client with Triton's binary tensors, so that nothing needs to be installed for it.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import http.client
import json
import os
import re
import shutil
import site
import socket
import sys
import sysconfig
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from exatrkx_hpc.base.process import Child, spawn
from exatrkx_hpc.tracking.constants import NETWORK_NAMES, Float32, Int64
from exatrkx_hpc.tracking.scoring.agreement import hits_in_other_tracks
from gpu_lane.base import SMALL, Lane, event, say

_MODEL = "exatrkx_fused"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBPYTHON = f"libpython{_VERSION}.so.1.0"
#: Time (s) to stop a server. It is below the ten seconds in which a step that timed out must end its processes.
_STOP_SECONDS = 5.0
_READY_SECONDS = 90.0
_INSTANCES = "instance_group [ { count: 1 kind: KIND_GPU } ]"
_LENGTH = "Inference-Header-Content-Length"
_SHARED_MEMORY = Path("/dev/shm")
_NGINX = """
daemon off;
user root root;
worker_processes 2;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream triton {{ server {server}; keepalive 64; }}
  server {{
    listen {listen};
    client_max_body_size 0;
    client_body_buffer_size 1m;
    location / {{ proxy_pass http://triton; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def serve(lane: Lane) -> None:
    """Start a server with 1, then 2, then 4 instances of the fused model; measure it directly and through nginx."""
    assert lane.triton is not None
    root = unpacked(lane.triton, lane.folder / "triton")
    environment = python_environment(root, lane.folder / "python", library=libpython())
    expected = {hits.tobytes(): labels for hits, labels in _expected(lane)}
    events = [np.frombuffer(hits, np.float32).reshape(-1, 3) for hits in expected]
    for instances in (2,) if lane.quick else (1, 2, 4):
        with _server(lane, root, environment, instances) as (address, ready_s):
            off = max(hits_in_other_tracks(expected[hits.tobytes()], _Client(address).labels(hits)) for hits in events)
            say(
                "triton",
                instances=instances,
                ready_s=round(ready_s, 1),
                **_invalid(address, events[0]),
                hits_in_other_tracks=off,
                events_per_s=round(_rate(address, events, lane.seconds, 2 * instances), 1),
                balanced_events_per_s=_balanced(lane, root, address, events, 2 * instances),
                in_flight=2 * instances,
            )


def _expected(lane: Lane) -> list[tuple[Float32, Int64]]:
    """Return events with the labels that the direct pipeline gives on the same device."""
    pipeline = lane.load()
    events = [event(SMALL, seed) for seed in range(4 if lane.quick else 16)]
    return [(hits, pipeline.find_tracks(hits)) for hits in events]


# --- the server -----------------------------------------------------------------------------------------


def unpacked(packed: Path, folder: Path) -> Path:
    """Return the folder of the packed server: `packed` itself, or `folder`, to which a tar file is unpacked."""
    if packed.is_dir():
        root = packed.resolve()
    else:
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        root = folder
    if not _home(root).joinpath("bin", "tritonserver").is_file():
        raise FileNotFoundError(f"{packed} holds no packed server; make it with benchmarks/pack_triton.sh")
    return root


def _home(root: Path) -> Path:
    return root / "pytriton" / "tritonserver"


def python_environment(root: Path, folder: Path, *, library: Path | None) -> dict[str, str]:
    """Return the variables with which Triton's stub starts this Python: PATH, PYTHONPATH, LD_LIBRARY_PATH.

    The stub needs the shared `library` of this Python. If the machine does not have it, the packed Python of the same
    version is used, with the packages of this Python. Links are created in `folder`.
    """
    checkout = Path(__file__).resolve().parents[2]
    name = _LIBPYTHON
    packed = root / f"python{_VERSION}"
    if library is not None:
        _link(folder / name, library)
        first, libraries = Path(sys.executable).parent, folder
    elif (packed / "lib" / name).is_file():
        places = [*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]
        target = packed / "lib" / f"python{_VERSION}" / "site-packages" / "of-this-machine.pth"
        target.parent.mkdir(exist_ok=True)
        target.write_text("".join(f"{place}\n" for place in dict.fromkeys(places)))
        first, libraries = packed / "bin", packed / "lib"
    else:
        raise FileNotFoundError(f"neither this machine nor the packed server has {name}, which Triton's stub needs")
    return {
        "PATH": f"{first}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep),
        "LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def libpython() -> Path | None:
    """Return the path of the shared library of this Python on this machine, or None."""
    folders = (sysconfig.get_config_var("LIBDIR"), f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}")
    places = [Path(str(folder)) / _LIBPYTHON for folder in folders]
    known = ctypes.util.find_library(f"python{_VERSION}") == _LIBPYTHON  # the system's loader finds it in any folder
    return next((place for place in places if place.is_file()), places[-1] if known else None)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def repository(lane: Lane, folder: Path, instances: int) -> Path:
    """Write a repository of the fused model and its networks to `folder`, for the lane's device; return it."""
    for name in (_MODEL, *NETWORK_NAMES):
        shutil.copytree(lane.repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / _MODEL / "config.pbtxt"
    text = file.read_text()
    # The configuration is written as text, because Triton's protobuf messages may not be installed here.
    kind = f"KIND_GPU gpus: [ {lane.device.partition(':')[2] or 0} ]" if lane.on_gpu else "KIND_CPU"
    if text.count(_INSTANCES) != 1:
        raise ValueError(f"{file} does not say '{_INSTANCES}'; write the number of instances where it says so")
    file.write_text(text.replace(_INSTANCES, f"instance_group [ {{ count: {instances} kind: {kind} }} ]"))
    return folder


@contextlib.contextmanager
def _server(lane: Lane, root: Path, environment: Mapping[str, str], instances: int) -> Iterator[tuple[str, float]]:
    """Run a server; yield its HTTP address and the seconds until it was ready; at the end, stop it and clean up."""
    folder = lane.folder / f"server-{instances}"
    folder.mkdir()
    models = repository(lane, folder / "models", instances)
    _lay_out_backend(_home(root), folder / "backends" / "python")
    port, prefix = _free_port(), f"exatrkx_lane_{uuid.uuid4().hex[:12]}"
    argv = [
        str(_home(root) / "bin" / "tritonserver"),
        f"--model-repository={models}",
        "--model-control-mode=explicit",
        f"--load-model={_MODEL}",
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]
    log = folder / "log"
    begin = time.monotonic()
    child = spawn(argv, log=log, env={**os.environ, **environment})
    try:
        _wait(child, port, begin + _READY_SECONDS, log)
        yield f"127.0.0.1:{port}", time.monotonic() - begin
    finally:
        child.stop(grace=_STOP_SECONDS)
        for left in _SHARED_MEMORY.glob(f"{prefix}*"):
            left.unlink(missing_ok=True)


def _lay_out_backend(home: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    stub = home / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise FileNotFoundError(f"the packed server has no part for Python {_VERSION}")
    for part in (*(home / "backends" / "python").iterdir(), stub):
        (folder / part.name).symlink_to(part)


def _wait(child: Child, port: int, until: float, log: Path) -> None:
    while time.monotonic() < until and child.returncode() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", f"/v2/models/{_MODEL}/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    print(log.read_text(errors="replace")[-6000:], file=sys.stderr)
    complaint = re.findall(r"^[EF]\d.*?\] (.*)$", log.read_text(errors="replace"), flags=re.MULTILINE)
    raise RuntimeError(f"the server was not ready: {complaint[-1] if complaint else 'its log is on stderr'}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


# --- the client -----------------------------------------------------------------------------------------


class _Client:
    """Sends requests to the fused model over one connection."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=30)

    def labels(self, hits: Float32) -> Int64:
        """Return the labels of an event; raises ValueError with Triton's message for an error."""
        data = hits.tobytes()
        given = {"name": "FEATURES", "shape": hits.shape, "datatype": "FP32"}
        header = json.dumps(
            {
                "inputs": [{**given, "parameters": {"binary_data_size": len(data)}}],
                "outputs": [{"name": "LABELS", "parameters": {"binary_data": True}}],
            }
        ).encode()
        sizes = {_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        self.connection.request("POST", f"/v2/models/{_MODEL}/infer", body=header + data, headers=sizes)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(body.decode(errors="replace"))
        # If the labels are empty, Triton answers with JSON only.
        labels = np.frombuffer(body[int(response.headers.get(_LENGTH, len(body))) :], dtype=np.int64)
        if len(labels) != len(hits):
            raise ValueError(f"{len(labels)} labels for {len(hits)} hits")
        return labels


def _invalid(address: str, good: Float32) -> dict[str, object]:
    """Send a NaN, then no hits, then an event; return the error message and whether all responses were right."""
    client = _Client(address)
    try:
        client.labels(np.full((2, 3), np.nan, np.float32))
        says = ""
    except ValueError as error:
        # Triton's Python backend appends the place in the code where the exception was raised.
        says = str(json.loads(str(error))["error"]).partition("\n\nAt:")[0]
    answered = len(client.labels(good[:0])) == 0 and len(client.labels(good)) == len(good)
    return {"ok": answered and "Refused: " in says and "NaN" in says and "\n" not in says, "invalid_says": says}


def _rate(address: str, events: list[Float32], seconds: float, in_flight: int) -> float:
    """Return events per second with `in_flight` concurrent requests; raises the error of a failed request."""
    done = [0] * in_flight
    errors: list[Exception] = []

    def work(number: int) -> None:
        client = _Client(address)
        try:
            while time.perf_counter() < until and not errors:
                client.labels(events[(number + done[number]) % len(events)])
                done[number] += 1
        except (OSError, ValueError, http.client.HTTPException) as error:
            errors.append(error)

    begin = time.perf_counter()
    until = begin + seconds
    threads = [threading.Thread(target=work, args=(number,)) for number in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - begin)


def _balanced(lane: Lane, root: Path, address: str, events: list[Float32], in_flight: int) -> float | str:
    """Return events per second through nginx, or the reason why it was not run."""
    program = shutil.which("nginx") or shutil.which("nginx", path=str(root / "nginx"))
    if program is None:
        return "not run: no nginx"
    folder = lane.folder / f"nginx-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    port = _free_port()
    listen = f"127.0.0.1:{port}"
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, server=address, listen=listen))
    child = spawn([program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(file)], log=folder / "log")
    try:
        _wait(child, port, time.monotonic() + 10, folder / "log")
        return round(_rate(listen, events, lane.seconds, in_flight), 1)
    finally:
        child.stop(grace=2)
