"""The whole way with real parts: servers, balancer, Prometheus and clients on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from repositories import tiny_repository
from runs import read_labels
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import EndpointError, LaunchError, ModelError
from exatrkx_hpc.base.process import session_members
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.endpoint import read_endpoint
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.measure.metrics import fetch, model_times
from exatrkx_hpc.models.build import build
from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.simulation.synthetic import write_events
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.inference.address import require_grpc
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.run.run import Settings

pytestmark = pytest.mark.usefixtures("triton", "nginx", "prometheus")


def flags(run_root: Path, **more: object) -> dict[str, object]:
    values = {
        "site": "local",
        "run_root": str(run_root).replace("$", "$$"),
        "cluster.local_address": "127.0.7.1",
        "server.drain": 1,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus_port": 0,
        "monitor.scrape_interval": 1,
    }
    return {**values, **{name.replace("__", "."): value for name, value in more.items()}}


@dataclass
class Up:
    """A farm that is up, and the lines that its monitor said."""

    job: farm.Job
    watch: Watch
    lines: list[tuple[float, str]] = field(default_factory=list)

    def records(self) -> dict[str, ServerRecord]:
        return {record.server: record for record in read_records(self.job.run_dir)}

    def said(self, part: str, *, since: float = 0.0) -> float | None:
        """When a line with this part was said first, after `since`."""
        return next((when for when, line in list(self.lines) if part in line and when >= since), None)

    def upstream(self) -> str:
        return (self.job.run_dir.balancer("nginx") / "upstream.conf").read_text()


@contextlib.contextmanager
def farm_up(run_root: Path, **more: object) -> Iterator[Up]:
    lines: list[tuple[float, str]] = []
    what = resolve(flags=flags(run_root, **more)).farm
    with farm.running(what, tell=lambda news: lines.append((time.monotonic(), str(news))), wait=180) as (job, watch):
        yield Up(job=job, watch=watch, lines=lines)


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    """Two servers that stay up for the whole module."""
    with farm_up(tmp_path_factory.mktemp("farm")) as running:
        yield running


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, events=10, tracks=40, seed=5)
    return folder


@pytest.fixture
def endpoint(up) -> Iterator[Endpoint]:
    with Endpoint(up.watch.endpoint, patience=60) as made:
        yield made


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def test_every_hit_of_the_reference_events_gets_the_label_that_the_pipeline_gives(up, endpoint, reference_data):
    direct = Pipeline.load(Path(up.job.farm.server.model_repository))
    for event in find_events(reference_data / "exatrkx" / "events_scaled"):
        hits = read_hits(event.path)
        labels = endpoint.find_tracks(hits)
        assert labels.dtype == np.int64
        assert same_partition(labels, direct.find_tracks(hits)), event.name


@pytest.mark.parametrize("hits", [0, 1, 2])
def test_the_smallest_events_get_labels(endpoint, hits):
    assert endpoint.find_tracks(np.full((hits, 3), 0.1, dtype=np.float32)).shape == (hits,)


def test_an_event_whose_filter_passes_no_edge_gets_a_label_for_each_hit(endpoint):
    apart = np.array([[0.02, -0.9, -2.0], [0.3, 0.4, 2.0], [0.1, 0.9, 0.0]], dtype=np.float32)
    nothing = label_components(np.empty((2, 0), np.int64), np.empty(0, np.float32), cut=0.5, n_hits=3)
    assert same_partition(endpoint.find_tracks(apart), nothing)


def test_many_events_come_back_in_their_order(endpoint, events):
    arrays = [read_hits(event.path) for event in find_events(events)]
    answers = list(endpoint.map(iter(arrays), in_flight=3))
    assert [len(labels) for labels in answers] == [len(hits) for hits in arrays]


def test_clients_find_the_endpoint_in_the_run_root_and_write_a_file_for_each_event(up, events, tmp_path):
    record = farm.endpoint_record(up.job.farm)
    assert record.grpc == up.watch.endpoint
    report = farm.run_clients(Settings(server=record.grpc, events=events, out=tmp_path, workers=2, in_flight=2))
    assert (report.done, report.failed) == (10, ())
    servers = {f"{server.address}:{server.grpc_port}" for server in up.records().values()}
    assert set(report.members) <= servers and sum(report.members.values()) == 10
    for event in find_events(events):
        assert len(read_labels(tmp_path / "labels" / event.path.name)) == len(read_hits(event.path))


def test_both_servers_take_requests_over_http_and_grpc(up, endpoint):
    before = [successes(up, name) for name in up.records()]
    hits = np.full((2, 3), 0.1, dtype=np.float32)
    for _ in range(20):
        endpoint.find_tracks(hits)
    after = [successes(up, name) for name in up.records()]
    assert all(late > early for early, late in zip(before, after, strict=True))
    record = farm.endpoint_record(up.job.farm)
    body = {
        "inputs": [{"name": "FEATURES", "datatype": "FP32", "shape": [2, 3], "data": hits.ravel().tolist()}],
    }
    with requests.post(f"http://{record.http}/v2/models/exatrkx/infer", json=body, timeout=30) as answer:
        assert answer.json()["outputs"][0]["shape"] == [2]


def test_the_other_addresses_of_a_farm_are_told_with_its_endpoint(up):
    """Real ports of Triton, nginx and Prometheus; and a server's ports without the farm's record."""
    record, server = farm.endpoint_record(up.job.farm), next(iter(up.records().values()))
    meant = farm.addresses_of(up.job.farm)
    require_grpc(record.grpc, meant=meant)
    grpc = f"{server.address}:{server.grpc_port}"
    require_grpc(grpc, meant=meant)
    for address in (record.http, record.prometheus, f"{server.address}:{server.metrics_port}"):
        with pytest.raises(EndpointError, match=f"use --server {record.grpc}$"):
            require_grpc(address, meant=meant)
    for port, kind in ((server.http_port, "HTTP"), (server.metrics_port, "metrics")):
        with pytest.raises(EndpointError, match=f"is a port for {kind}, not for gRPC; use --server {grpc}$"):
            require_grpc(f"{server.address}:{port}")


def successes(up: Up, server: str) -> int:
    record = up.records()[server]
    times = model_times(fetch(f"{record.address}:{record.metrics_port}"))
    return sum(one.successes for one in times if one.model == "exatrkx")


def test_prometheus_holds_the_servers_counters_by_node(up, endpoint):
    endpoint.find_tracks(np.full((2, 3), 0.1, dtype=np.float32))
    record = farm.endpoint_record(up.job.farm)

    def nodes() -> set[str]:
        query = {"query": f'nv_inference_request_success{{model="exatrkx",job="{up.job.id}"}}'}
        with requests.get(f"http://{record.prometheus}/api/v1/query", params=query, timeout=5) as answer:
            return {row["metric"]["node"] for row in answer.json()["data"]["result"]}

    until(lambda: nodes() == {r.node for r in up.records().values()}, what="both nodes in Prometheus")


def test_a_second_monitor_of_the_job_is_refused(up):
    with pytest.raises(EndpointError, match="another monitor is running for job"):
        farm.watch(up.job).start()


@pytest.mark.chaos
def test_a_killed_server_fails_no_event_and_comes_back(up, tmp_path):
    """SIGKILL of one of two servers while at least 500 events go through, and its return while they still do."""
    write_events(tmp_path / "events", events=500, tracks=30, seed=6)
    settings = Settings(
        server=up.watch.endpoint, events=tmp_path / "events", out=tmp_path / "out", workers=2, in_flight=4, fresh=True
    )
    victim = up.records()[sorted(up.records())[0]]
    address = f"{victim.address}:{victim.grpc_port}"
    assert address in up.upstream()
    times: dict[str, float] = {}
    stop = threading.Event()

    def kill_and_wait_for_the_return() -> None:
        try:
            labels = tmp_path / "out" / "labels"
            until(lambda: len(list(labels.glob("*.csv"))) > 50, what="fifty results", deadline=120)
            times["killed"] = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            until(lambda: address not in up.upstream(), what="its departure from the upstream")
            times["left"] = time.monotonic()
            until(lambda: address in up.upstream(), what="its return to the upstream", deadline=120)
            times["back"] = time.monotonic()
        finally:
            stop.set()

    killer = threading.Thread(target=kill_and_wait_for_the_return)
    killer.start()
    reports = []
    while not reports or not stop.is_set():  # events go through all the while, and once after the return
        reports.append(farm.run_clients(settings))
    reports.append(farm.run_clients(settings))
    killer.join()
    assert [(r.events, r.done, r.failed) for r in reports] == [(500, 500, ())] * len(reports)
    assert times["left"] - times["killed"] < 5  # the promise of the monitor, at one look a second
    assert times["back"] > times["left"]
    assert up.records()[victim.server].starts == victim.starts + 1


@pytest.mark.chaos
def test_a_server_that_hangs_leaves_the_upstream_and_returns(up):
    victim = up.records()[sorted(up.records())[1]]
    address = f"{victim.address}:{victim.grpc_port}"
    assert address in up.upstream()
    stopped = time.monotonic()
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        gone = until(lambda: up.said(f"{victim.server}: gone (does not answer)", since=stopped), what="its departure")
        assert gone - stopped < 15
        assert address not in up.upstream()
        # A request that the hanging server holds is tried again elsewhere when its own time is over.
        with Endpoint(up.watch.endpoint, request_timeout=5) as impatient:
            assert impatient.find_tracks(np.full((2, 3), 0.1, dtype=np.float32)).shape == (2,)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    until(lambda: up.said(f"{victim.server}: ready", since=stopped), what="its return")
    until(lambda: address in up.upstream(), what="its place in the upstream")


@pytest.mark.chaos
def test_a_killed_nginx_is_started_again(up, endpoint):
    os.kill(int((up.job.run_dir.balancer("nginx") / "nginx.pid").read_text()), signal.SIGKILL)
    assert endpoint.find_tracks(np.full((2, 3), 0.1, dtype=np.float32)).shape == (2,)
    until(lambda: up.said("nginx has ended; starts again"), what="the monitor's word")
    assert endpoint.find_tracks(np.full((2, 3), 0.1, dtype=np.float32)).shape == (2,)


def about(folder: Path) -> list[str]:
    """The living processes that name a folder in their command."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(folder) in " ".join(process.info["cmdline"] or [])
    ]


def test_leaving_the_block_leaves_nothing(tmp_path):
    tiny_repository(tmp_path / "models")
    with farm.up(flags=flags(tmp_path, job__nodes=1, server__model_repository=str(tmp_path / "models"))) as endpoint:
        assert endpoint.find_tracks(np.full((1, 3), 0.1, dtype=np.float32)).shape == (1,)
        job_session = os.getsid(read_records(RunDir(tmp_path / "1"))[0].pid)
        until(  # Prometheus starts beside the endpoint, which does not wait for it
            lambda: {"nginx:", "prometheus"} <= {Path(line.split()[0]).name for line in about(tmp_path)},
            what="nginx and Prometheus",
        )
        assert read_endpoint(RunDir(tmp_path / "1")) is not None
    assert session_members(job_session) == []
    assert about(tmp_path) == []
    (log,) = (tmp_path / "1" / "logs").iterdir()
    assert "Signal (15) received" in log.read_text() and "Exit timeout expired" not in log.read_text()
    assert read_endpoint(RunDir(tmp_path / "1")) is None


def test_a_farm_without_weights_says_which_and_starts_nothing(tmp_path):
    repository = tmp_path / "models"
    build(asset("model_repos/exatrkx"), repository, device="cpu")
    (repository / "gnn" / "1" / "model.pt").unlink()
    with (
        pytest.raises(ModelError, match=r"gnn.*model\.pt"),
        farm.up(flags=flags(tmp_path, server__model_repository=str(repository))),
    ):
        pytest.fail("a farm without weights is up")
    assert not (tmp_path / "1").exists()


def test_a_folder_name_that_breaks_triton_is_refused_before_the_start(tmp_path):
    with pytest.raises(LaunchError, match="contains ' ', which Triton's Python backend does not support"):
        farm.deploy(resolve(flags=flags(tmp_path / "a b")).farm)
