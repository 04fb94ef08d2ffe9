"""Mistakes that a user makes at the command line: each is one line that says what, where and what next."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command import PROGRAM, complaint, exatrkx_hpc
from fakes.running import fake_triton
from paths import FAKES
from waiting import until

from exatrkx_hpc.base.process import Completed, run, spawn
from exatrkx_hpc.fleet.endpoint import EndpointRecord, point_latest, write_endpoint
from exatrkx_hpc.launch.run_dir import RunDir

METRICS = (FAKES / "triton_metrics.txt").read_text()


# Workers


@pytest.mark.parametrize("files", [24, 64])
def test_more_workers_than_there_are_files_for(tmp_path, files):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_0.csv").write_text("0.1,0.2,0.3\n")
    script = 'ulimit -n "$1"; shift; exec "$@"'
    with fake_triton() as fake:
        words = [PROGRAM, "run-clients", "-s", fake.server, "-n", "40", "-q"]
        done = run(["bash", "-c", script, "bash", str(files), *words], cwd=tmp_path, timeout=60)
    assert "cannot start a worker (Too many open files); lower -n" in complaint(done, 2)
    assert json.loads((tmp_path / "results" / "report.json").read_text())["not_tried"] == 1


def test_results_in_a_link_to_itself(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_0.csv").write_text("0.1,0.2,0.3\n")
    (tmp_path / "loop").symlink_to("loop")
    done = exatrkx_hpc("run-clients", "-s", "127.0.0.1:1", "-o", "loop", cwd=tmp_path)
    assert "cannot use loop for results: Too many levels of symbolic links" in complaint(done, 8)


@pytest.mark.parametrize(
    "words",
    [
        ("run-clients", "-s", "127.0.0.1:1", "-o", "LONG"),
        ("run-clients", "-s", "127.0.0.1:1", "-d", "LONG"),
        ("events", "convert", "LONG", "new"),
        ("models", "check", "LONG"),
        ("report", "LONG"),
        ("config", "show", "-c", "LONG"),
        ("deploy", "-c", "LONG"),
        ("score", "LONG", "--truth", "LONG"),
        ("status", "LONG"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_name_that_no_file_system_takes(tmp_path, words):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_0.csv").write_text("0.1,0.2,0.3\n")
    done = exatrkx_hpc(*(word.replace("LONG", "x" * 300) for word in words), cwd=tmp_path)
    assert done.returncode in range(2, 10) and "No such option" not in complaint(done, done.returncode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events"]


# Metrics


@dataclass
class MetricsServer:
    """A server that tells the metrics of a Triton, or `text`; `asked` counts how often."""

    address: str = ""
    text: str = METRICS
    asked: int = 0
    done: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def stop(self) -> None:
        self.done.close()


@pytest.fixture
def metrics_server():
    """Start servers of metrics; all are stopped at the end."""
    started: list[MetricsServer] = []

    def start() -> MetricsServer:
        one = MetricsServer()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                one.asked += 1
                self.send_response(200)
                self.end_headers()
                self.wfile.write(one.text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = one.done.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        one.done.callback(thread.join)
        one.done.callback(server.shutdown)
        one.address = f"127.0.0.1:{server.server_address[1]}"
        started.append(one)
        return one

    yield start
    for one in started:
        one.stop()


def watched_farm(tmp_path: Path, *servers: MetricsServer) -> None:
    """Write what a monitor of job 1 writes when these servers are ready."""
    (tmp_path / "farms" / "1").mkdir(parents=True, exist_ok=True)
    record = EndpointRecord(
        job="1",
        grpc="127.0.0.1:1",
        http="127.0.0.1:1",
        prometheus="",
        metrics={str(number): server.address for number, server in enumerate(servers)},
        ready=len(servers),
        monitor_pid=os.getpid(),
        updated=time.time(),
    )
    write_endpoint(RunDir(tmp_path / "farms" / "1"), record)
    point_latest(RunDir(tmp_path / "farms" / "1"))


def test_metrics_of_a_farm_without_a_ready_server(tmp_path):
    watched_farm(tmp_path)
    done = exatrkx_hpc("metrics", "--run-root", "farms", cwd=tmp_path)
    assert "no server of job 1 is ready" in complaint(done, 5)
    assert done.stdout == ""


def test_totals_without_one_of_the_servers_are_no_totals(tmp_path, metrics_server):
    one, two = metrics_server(), metrics_server()
    watched_farm(tmp_path, one, two)
    both = exatrkx_hpc("metrics", "--run-root", "farms", "--json", cwd=tmp_path)
    assert {row["successes"] for row in json.loads(both.stdout)} == {32}
    two.stop()
    done = exatrkx_hpc("metrics", "--run-root", "farms", "--csv", "m.csv", cwd=tmp_path)
    assert f"nothing answers at http://{two.address}" in complaint(done, 5)
    assert done.stdout == "" and not (tmp_path / "m.csv").exists()


@contextlib.contextmanager
def watching(tmp_path: Path) -> Iterator[tuple[object, Path]]:
    log = tmp_path / "log"
    words = ["metrics", "--run-root", "farms", "--json", "--watch", "0.1"]
    child = spawn([PROGRAM, *words], log=log, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    try:
        yield child, log
    finally:
        child.stop(grace=1.0)


@pytest.mark.slow
def test_a_watch_goes_on_with_the_servers_that_there_are(tmp_path, metrics_server):
    one, two, three = metrics_server(), metrics_server(), metrics_server()
    watched_farm(tmp_path, one, two)
    with watching(tmp_path) as (child, log):
        until(lambda: two.asked >= 2, what="two rounds")
        two.stop()
        until(lambda: f"left out: nothing answers at http://{two.address}" in log.read_text(), what="its name")
        watched_farm(tmp_path, one, three)
        until(lambda: three.asked >= 2, what="a server that joined")
        so_far = one.asked
        until(lambda: one.asked > so_far, what="the server that was always there")
        assert child.returncode() is None
        one.stop()
        three.stop()
        assert child.wait(30) == 5
        assert "none of 2 servers returns metrics" in log.read_text().splitlines()[-1]


@pytest.mark.slow
def test_a_server_that_was_silent_for_a_round_does_not_count_twice(tmp_path, metrics_server):
    one, two = metrics_server(), metrics_server()
    watched_farm(tmp_path, one, two)
    with watching(tmp_path) as (_, log):
        until(lambda: two.asked >= 2, what="two rounds")
        watched_farm(tmp_path, one)
        so_far = one.asked
        until(lambda: one.asked >= so_far + 3, what="rounds without it")
        left = two.asked
        watched_farm(tmp_path, one, two)
        until(lambda: two.asked >= left + 2, what="its return")
    rounds = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["successes"] for row in rounds[0]} == {32}
    assert {row["successes"] for times in rounds[1:] for row in times} == {0}


def test_counters_that_are_none_are_one_line_and_no_totals(tmp_path, metrics_server):
    one, two = metrics_server(), metrics_server()
    two.text = METRICS.replace('success{model="gnn",version="1"} 16', 'success{model="gnn",version="1"} NaN')
    watched_farm(tmp_path, one, two)
    done = exatrkx_hpc("metrics", "--run-root", "farms", "--csv", "m.csv", cwd=tmp_path)
    said = f"http://{two.address}/metrics: nv_inference_request_success of model 'gnn' version '1' is nan, which is no"
    assert said in complaint(done, 5)
    assert done.stdout == "" and not (tmp_path / "m.csv").exists()
    so_far = one.asked
    with watching(tmp_path) as (_, log):
        until(lambda: one.asked >= so_far + 3, what="rounds without it")
    lines = log.read_text().splitlines()
    assert f"left out: {said}" in lines[0]
    assert [{row["successes"] for row in json.loads(line)} for line in lines if line[0] == "["][:2] == [{16}, {0}]


@pytest.mark.slow
def test_a_server_that_answers_late_counts_from_its_first_answer(tmp_path, metrics_server):
    one, two = metrics_server(), metrics_server()
    two.text = "not yet"
    watched_farm(tmp_path, one, two)
    with watching(tmp_path) as (_, log):
        until(lambda: two.asked >= 2, what="two rounds")
        two.text = METRICS
        until(lambda: "answers for the first time" in log.read_text(), what="its first answer")
        seen = two.asked
        two.text = METRICS.replace("} 16\n", "} 19\n")
        until(lambda: two.asked >= seen + 3, what="its next answers")
    rounds = [json.loads(line) for line in log.read_text().splitlines() if line[0] == "["]
    assert {row["successes"] for row in rounds[0]} == {16}
    assert sum(times[0]["successes"] for times in rounds[1:]) == 3


# Events and models


def test_events_of_two_calls_are_not_mixed(tmp_path):
    words = ["events", "generate", "-o", "events", "--events", 2, "--tracks", 5]
    assert exatrkx_hpc(*words, cwd=tmp_path).returncode == 0
    before = {path: path.read_text() for path in (tmp_path / "events").rglob("*.csv")}
    done = exatrkx_hpc(*words, "--events", 1, "--seed", 7, cwd=tmp_path)
    assert "events holds 2 events already; use them, remove the folder, or choose another --out" in complaint(done, 8)
    assert {path: path.read_text() for path in (tmp_path / "events").rglob("*.csv")} == before


def test_events_go_into_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "README").write_text("mine")
    assert exatrkx_hpc("events", "generate", "-o", "events", "--events", 1, cwd=tmp_path).returncode == 0


def test_events_that_no_memory_holds(tmp_path):
    done = exatrkx_hpc("events", "generate", "-o", "events", "--tracks", 10**15, cwd=tmp_path)
    assert "lower --tracks" in complaint(done, 2)


def test_models_in_a_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    message = complaint(exatrkx_hpc("models", "build", "--device", "cpu", "--out", "file/x", cwd=tmp_path), 8)
    assert "file/x cannot be written" in message


def without(package: str, *words: str, cwd: Path) -> Completed:
    """Run a command line in a Python that does not have `package`."""
    script = "import sys; sys.modules[sys.argv[1]] = None; del sys.argv[1]; from exatrkx_hpc.cli import main; main()"
    return run([sys.executable, "-c", script, package, *words], cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torch", "scipy"])
def test_training_without_the_packages_for_it(tmp_path, package):
    done = without(package, "models", "train", "--out", "models", cwd=tmp_path)
    message = complaint(done, 3)
    assert "models train needs PyTorch and SciPy" in message
    assert "pip install 'exatrkx-hpc[train]'" in message
    assert list(tmp_path.iterdir()) == []


def test_weights_in_a_place_that_cannot_be_are_refused_before_the_training(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "file").write_text("")
    done = exatrkx_hpc("models", "train", "--out", "file/x", cwd=tmp_path, timeout=60)
    assert "cannot write the weights to file/x: " in complaint(done, 8)
