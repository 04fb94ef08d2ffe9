"""Scans with a real Triton, a real nginx and the real perf_analyzer, as small as they can be."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import exatrkx_hpc
from images.perf_analyzer import perf_analyzer
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.measure.bench_table import read_table
from exatrkx_hpc.measure.perf_analyzer import PerfAnalyzer
from exatrkx_hpc.tracking.simulation.synthetic import write_events

pytestmark = pytest.mark.usefixtures("triton", "nginx")
FILE = """\
site = "local"
run_root = "run"
[cluster]
local_address = "127.0.9.1"
[server]
model_repository = "models"
drain = 0
exit_timeout = 5
[bench]
concurrency = [1, 2]
calls = "async"
window = 0.3
repeats = 2
most_repeats = 2
perf_analyzer = [{command}]
"""


@pytest.fixture(scope="module")
def analyzer() -> PerfAnalyzer:
    try:
        return perf_analyzer()
    except MissingComponent as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, analyzer: PerfAnalyzer) -> Path:
    """A folder with farm.toml, events and a model that is there in a second."""
    made = tmp_path_factory.mktemp("bench")
    tiny_repository(made / "models")
    write_events(made / "events", events=3, seed=1, tracks=5)
    command = ", ".join(json.dumps(word) for word in analyzer.command)
    (made / "farm.toml").write_text(FILE.format(command=command))
    return made


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def job(folder: Path) -> Iterator[farm.Job]:
    """Two servers that run already, without a monitor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        what = resolve(flags={"job.nodes": 2}).farm
    job = farm.deploy(what)
    try:
        farm.wait_ready(job, timeout=120)
        yield job
    finally:
        farm.stop(job, drain=False)


def test_a_scan_brings_up_its_placement_and_writes_one_table_and_figures(there: Path):
    argv = ["bench", "--servers", "1", "--instances", "2", "--concurrency", "1,2", "--repeats", "1", "--no-direct"]
    argv += ["--most-repeats", "1", "-o", "scan", "--json"]
    done = exatrkx_hpc(*argv, cwd=there)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["point"]["servers"], one["point"]["instances"]) for one in found["points"]] == [(1, 2)] * 2
    assert found["recommendation"]["knee"]["servers"] == 1
    assert {Path(path).stem for path in found["figures"]} >= {"throughput_concurrency", "latency_split"}
    for path in found["figures"]:
        assert (there / path).stat().st_size > 1000
    rows = read_table(there / "scan")
    assert {(row.model, row.calls, row.triton, row.repetition) for row in rows} == {("exatrkx", "async", "2.51.0", 1)}
    for row in rows:
        assert row.events_per_s > 0 and row.p99_ms >= row.p50_ms > 0
        parts = (row.queue_ms, row.input_ms, row.compute_ms, row.output_ms, row.network_ms)
        assert sum(parts) == pytest.approx(row.mean_ms, rel=1e-4)
        assert (there / "scan" / "points" / f"service-1x2x{row.concurrency}-1.csv").is_file()
    again = exatrkx_hpc(*argv, cwd=there)  # everything is measured: no farm is brought up
    assert json.loads(again.stdout)["points"] == found["points"]
    assert "server" not in again.stderr


def test_the_servers_of_a_job_are_measured_and_a_stopped_scan_goes_on(there: Path, job: farm.Job):
    argv = ["bench", "--job", job.id, "--no-plots", "-o", "of-job"]
    with socket.create_server(("127.0.0.1", 0)) as taken:  # as another farm's endpoint would
        port = {"EXATRKX_HPC_BALANCER_GRPC_PORT": str(taken.getsockname()[1])}
        words = [*argv, "--concurrency", "1", "--repeats", "1", "--most-repeats", "1"]
        first = exatrkx_hpc(*words, cwd=there, env=port)
    assert first.returncode == 0, first.stderr
    (kept,) = read_table(there / "of-job")
    second = exatrkx_hpc(*argv, cwd=there)
    assert second.returncode == 0, second.stderr
    rows = read_table(there / "of-job")
    assert [(row.servers, row.concurrency, row.repetition) for row in rows] == [
        (2, 1, 1),
        (2, 1, 2),
        (2, 2, 1),
        (2, 2, 2),
    ]
    assert rows[0] == kept
    for row in rows:  # both servers had their part, and perf_analyzer got figures through the balancer
        shares = dict(one.split("=") for one in row.members.split())
        assert len(shares) == 2 and all(float(share) > 0.1 for share in shares.values()), row.members
    assert "smallest within 5 %" in second.stdout
    assert len(farm.status(job).servers) == 2  # they go on
    named = exatrkx_hpc("bench", "--recommend", "--json", "-o", "of-job", cwd=there)
    assert json.loads(named.stdout)["knee"]["servers"] == 2
    other = exatrkx_hpc(*argv, "--window", "0.4", cwd=there)
    assert other.returncode == 2
    assert "holds a scan with a different window (0.3, now 0.4)" in other.stderr.splitlines()[-1]


def test_a_model_that_is_not_there_ends_the_scan_with_the_reason(there: Path, job: farm.Job):
    done = exatrkx_hpc("bench", "--job", job.id, "--model", "nobody", "-o", "none", cwd=there)
    assert done.returncode == 7
    assert "nobody is not ready at" in done.stderr.splitlines()[-1]


def test_a_job_that_measures_itself_ends_with_a_folder_of_figures(there: Path):
    done = exatrkx_hpc("deploy", "--with", "bench", "-d", "events", "--json", cwd=there)
    assert done.returncode == 0, done.stderr
    job = farm.find_job(resolve().farm, json.loads(done.stdout)["job"])
    try:
        state = until(
            lambda: (now := job.scheduler.info(job.id).state).over and now, what="the job's end", deadline=120
        )
    finally:
        farm.stop(job, drain=False)
    log = (job.run_dir.logs / "beside.log").read_text()
    assert state is JobState.COMPLETED, log
    assert [(row.servers, row.concurrency) for row in read_table(job.run_dir.bench)] == [(2, 1)] * 2 + [(2, 2)] * 2
    assert (job.run_dir.bench / "figures" / "throughput_concurrency.pdf").is_file()
    assert "smallest within 5 %" in log
