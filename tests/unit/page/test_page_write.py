from __future__ import annotations

import http.server
import json
import threading
import time

import pytest
from command import complaint, exatrkx_hpc

from exatrkx_hpc.base.errors import IncompleteRun, InputError, OutputError
from exatrkx_hpc.fleet.endpoint import EndpointRecord, point_latest, write_endpoint
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.measure.counters import COUNTED, Counters, Snapshot
from exatrkx_hpc.page.counted import counted, snapshots
from exatrkx_hpc.page.read import noted
from exatrkx_hpc.page.write import page_of_run, write_page
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.file import create
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.open import facts_of
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.run.latency import Latency
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.run import Settings, StoppedRun
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD


def counters(requests: int, infer_us: int) -> Counters:
    return Counters(request_success=requests, count=requests, compute_infer_duration_us=infer_us)


def snapshot(requests: int) -> Snapshot:
    """A server after so many requests to its ensemble of two stages, 1 ms and 3 ms each."""
    return Snapshot(
        url="",
        counters={
            ("exatrkx", "1"): counters(requests, 4000 * requests),
            ("embed", "1"): counters(requests, 1000 * requests),
            ("gnn", "1"): counters(requests, 3000 * requests),
            ("exatrkx_fused", "1"): counters(0, 0),
        },
    )


def test_counters_are_of_the_run_alone_and_of_all_servers():
    before = {"a": snapshot(100), "gone": snapshot(7)}
    after = {"a": snapshot(110), "new": snapshot(30), "idle": snapshot(0)}
    found = counted(before, after, ensemble="exatrkx")
    assert found.answered == {"a": 10, "new": 30}
    assert found.compute["embed"] == pytest.approx(40) and found.compute["gnn"] == pytest.approx(120)
    assert "exatrkx" not in found.compute


def test_servers_that_do_not_answer_count_nothing():
    assert snapshots({}) == {} and snapshots({"a": "127.0.0.1:9"}) == {"a": None}
    # What a server counted before its first answer is not of this run.
    for before, after in ((None, snapshot(9)), (snapshot(9), None), (None, None)):
        found = counted({"a": before, "b": snapshot(1)}, {"a": after, "b": snapshot(3)}, ensemble="exatrkx")
        assert found.answered == {"b": 2} and found.compute["gnn"] == pytest.approx(6)


@pytest.fixture
def settings(tmp_path):
    return Settings(server="127.0.0.1:9191", events=tmp_path / "events", out=tmp_path / "out", workers=2)


@pytest.fixture
def ledger_of(settings):
    """Make the ledger of a run with one event that is done."""

    def make() -> None:
        (settings.out / "labels").mkdir(parents=True, exist_ok=True)
        path = Results(settings.out).ledger
        if not path.exists():
            create(path, facts_of(settings.events, workload=WORKLOAD, mode="ensemble", model="exatrkx"))
        with Ledger(path) as ledger:
            row = (event_key("e"), "e")
            with ledger.db:
                ledger.db.execute("INSERT OR IGNORE INTO events (key, name, size, mtime_ns) VALUES (?, ?, 1, 1)", row)
            ledger.begin_run(server=settings.server, version="1")
            ledger.end_run(None)

    return make


def words(settings: Settings) -> str:
    return Results(settings.out).page.read_text()


def test_a_run_that_ends_and_one_that_is_stopped_have_a_page(settings, ledger_of):
    with page_of_run(settings):
        ledger_of()
    assert "127.0.0.1:9191" in words(settings) and "request timeout" in words(settings)
    Results(settings.out).page.unlink()
    report = Report(
        server="",
        model="",
        events=1,
        done=0,
        failed=(),
        items=0,
        seconds=0,
        latency_ms=Latency(),
        retries=0,
        workers=(),
    )
    with pytest.raises(StoppedRun), page_of_run(settings):
        raise StoppedRun("stopped", report)
    assert "1 not done yet" in words(settings)


def test_a_run_that_fails_keeps_its_error_and_has_no_page(settings, ledger_of):
    with pytest.raises(IncompleteRun, match=r"^boom$"), page_of_run(settings):
        raise IncompleteRun("boom")
    report = Report(
        server="",
        model="",
        events=1,
        done=0,
        failed=(),
        items=0,
        seconds=0,
        latency_ms=Latency(),
        retries=0,
        workers=(),
    )
    with pytest.raises(StoppedRun, match=r"^stopped$"), page_of_run(settings):
        raise StoppedRun("stopped", report)  # and there is no ledger
    assert not Results(settings.out).page.exists()


class Server(http.server.BaseHTTPRequestHandler):
    """A server with metrics that count one more request each time, and a version."""

    asked = 0

    def do_GET(self) -> None:
        if self.path == "/v2":
            text = json.dumps({"name": "triton", "version": "2.99.0"})
        else:
            type(self).asked += 1
            rows = [("exatrkx", 4000), ("embed", 1000), ("gnn", 3000)]
            values = {"request_success": 1}
            text = "".join(
                f'nv_inference_{name}{{model="{model}",version="1"}} '
                f"{(values | {'compute_infer_duration_us': spent}).get(name, 0) * self.asked}\n"
                for model, spent in rows
                for name in COUNTED
            )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def farm(tmp_path, settings):
    """The folder of a farm whose endpoint is the one of the run, with one server that counts."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        at = f"127.0.0.1:{server.server_port}"
        run_dir = tmp_path / "run" / "7"
        run_dir.mkdir(parents=True)
        facts = {"job": "7", "grpc": settings.server, "http": at, "prometheus": "", "metrics": {"n1": at}, "ready": 1}
        record = EndpointRecord(**facts, monitor_pid=1, updated=time.time())
        write_endpoint(RunDir(run_dir), record)
        point_latest(RunDir(run_dir))
        yield tmp_path / "run"
        server.shutdown()
        thread.join()


def test_the_farms_servers_are_asked_what_they_did_and_runs_add_up(settings, ledger_of, farm):
    for requests in (1, 2):
        with page_of_run(settings, farm):
            ledger_of()
        with Ledger(Results(settings.out).ledger) as ledger:
            assert noted(ledger, "answered") == {"n1": requests}
            assert noted(ledger, "compute") == {"embed": pytest.approx(requests), "gnn": pytest.approx(3 * requests)}
            assert noted(ledger, "versions")["Triton"] == "2.99.0"
    assert 'id="stages"' in words(settings) and "75.0 %" in words(settings) and 'id="runs"' in words(settings)


def test_servers_that_were_not_known_before_the_run_are_not_counted_from_their_beginning(settings, ledger_of, farm):
    record = RunDir(farm / "7").endpoint
    for first, second in ((record, record.with_name("aside")), (record.with_name("aside"), record)):
        with page_of_run(settings, farm):
            ledger_of()
            first.rename(second)
        with Ledger(Results(settings.out).ledger) as ledger:
            assert noted(ledger, "answered") == noted(ledger, "compute") == {}
    assert counted(None, {"a": snapshot(3)}, ensemble="exatrkx").answered == {}


def test_another_endpoint_is_not_the_farms(tmp_path, settings, ledger_of, farm):
    other = Settings(server="127.0.0.1:9192", events=settings.events, out=settings.out)
    with page_of_run(other, farm):
        ledger_of()
    assert 'id="stages"' not in words(settings) and "Triton" not in words(settings)


def test_the_page_is_made_again_from_the_ledger(settings, ledger_of):
    with page_of_run(settings):
        ledger_of()
    first = words(settings)
    Results(settings.out).page.unlink()
    done = exatrkx_hpc("report", "out", cwd=settings.out.parent)
    assert done.returncode == 0 and done.stdout == "out/report.html\n", done.stderr
    assert words(settings) == first


def test_a_folder_without_a_ledger_and_one_that_a_run_has(tmp_path, settings, ledger_of):
    assert "has no ledger" in complaint(exatrkx_hpc("report", "nothing", cwd=tmp_path), 6)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(InputError, match="has no ledger"):
        write_page(settings.out)
    ledger_of()
    with Results(settings.out).owned(), pytest.raises(OutputError, match="another run writes"):
        write_page(settings.out)


def test_a_full_results_folder_is_told(settings, ledger_of):
    ledger_of()
    Results(settings.out).page.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*report\.html"):
        write_page(settings.out)


def test_a_ledger_with_results_has_all_its_figures(settings, ledger_of):
    ledger_of()
    with Ledger(Results(settings.out).ledger) as ledger:
        ledger.begin_run(server=settings.server, version="1")
        fields = {"items": 3, "seconds": 0.25, "retries": 1, "size": 1, "mtime_ns": 1, "member": "n1:8001"}
        ledger.done(Result(name="e", sha256="ab", result_size=1, result_sha256="cd", **fields))
        ledger.end_run(None)
    write_page(settings.out)
    assert 'id="latency"' in words(settings) and "n1:8001" in words(settings)
