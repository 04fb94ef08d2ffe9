"""Scans with a real Triton, a real nginx and the real perf_analyzer, as small as they can be."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import complaint, exatrkx_hpc
from images.perf_analyzer import perf_analyzer
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import ConfigError, MissingComponent
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.process import find_program, run
from exatrkx_hpc.bench import direct
from exatrkx_hpc.bench.in_job import bench_command
from exatrkx_hpc.bench.places import sized
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.measure.bench_table import read_table
from exatrkx_hpc.measure.perf_analyzer import PerfAnalyzer
from exatrkx_hpc.tracking.simulation.synthetic import write_events

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


real = pytest.mark.usefixtures("triton", "nginx")


@pytest.mark.triton
@real
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


@pytest.mark.triton
@real
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


@pytest.mark.triton
@real
def test_a_model_that_is_not_there_ends_the_scan_with_the_reason(there: Path, job: farm.Job):
    done = exatrkx_hpc("bench", "--job", job.id, "--model", "nobody", "-o", "none", cwd=there)
    assert done.returncode == 7
    assert "nobody is not ready at" in done.stderr.splitlines()[-1]


@pytest.mark.triton
@real
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


def test_the_script_of_such_a_job_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every value that was set goes with the command, also those that a shell or the configuration would change."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "fake"
    program.write_text("#!/bin/sh\necho 'Perf Analyzer Version 1.2.3'\n")
    program.chmod(0o755)
    (tmp_path / "events").mkdir()
    flags = {
        "site": "generic",
        "run_root": f"{tmp_path}/a'; echo $$HOME b",
        "job.nodes": 3,
        "job.prologue": ("module load 'x'", "true"),
        "bench.perf_analyzer": (str(program),),
    }
    found = resolve(flags=flags, ambient=False)
    command = bench_command(found.farm, Path("events"), sources=found.sources)
    path = tmp_path / "job.sbatch"
    path.write_text(farm.script(found.farm, sources=found.sources, beside=command))
    checked = run([find_program("shellcheck", remedy="install shellcheck"), str(path)])
    assert checked.returncode == 0, checked.stdout
    for name, value in (word.split("=", 1) for word in command if isinstance(word, str) and "EXATRKX_HPC_" in word):
        monkeypatch.setenv(name, value)
    again = resolve().farm
    assert (again.run_root, again.job) == (found.farm.run_root, found.farm.job)
    assert (again.bench, again.balancer.grpc_port, again.monitor.prometheus) == (found.farm.bench, 0, False)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-d", "nowhere"], 6, "there is no nowhere; name "),
        (["-d", "."], 3, "perf_analyzer"),
        (["--interactive"], 2, "cannot be combined with --with"),
    ],
)
def test_deploy_refuses_a_scan_that_could_not_work(tmp_path: Path, words: list[str], code: int, says: str):
    done = exatrkx_hpc("deploy", "--site", "local", "--run-root", "run", "--with", "bench", *words, cwd=tmp_path)
    assert says in complaint(done, code)
    assert not (tmp_path / "run").exists()


def test_the_pipeline_without_a_server_is_measured_in_several_processes(tmp_path: Path):
    pytest.importorskip("torch")
    from exatrkx_hpc.base.assets import asset

    write_events(tmp_path / "events", events=2, seed=1, tracks=3)
    with direct.running(asset("model_repos/exatrkx"), tmp_path / "events", 2) as work:
        figures = work(0.05)
        assert figures.per_second > 0
        assert 0 < figures.p50_ms <= figures.p99_ms
        assert work(0.05).per_second > 0


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path):
    argv = ["bench", "--site", "local", "--servers", "1,2", "--instances", "3", "--dry-run", "--run-root", "run"]
    done = exatrkx_hpc(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 server(s) x 3 instance(s): concurrency 1, 2, 4, 8" in done.stdout
    assert "6 process(es)" in done.stdout
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(exatrkx_hpc(*argv, "--no-direct", "--minutes", "2", "--json", cwd=tmp_path).stdout)
    assert plan["placements"] == [{"servers": 1, "instances": 3}, {"servers": 2, "instances": 3}]
    assert (plan["direct"], plan["seconds_at_most"]) == ([], 120)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--servers", "two"], 2, "--servers 'two' is not a list of integers; write it as 1,2,4"),
        (["--concurrency", "0"], 2, "bench.concurrency"),
        (["--instances", "65"], 2, "--instances 65 is too many"),
        (["--job", "1", "--servers", "2"], 2, "--job measures the running servers"),
        (["-d", "nowhere"], 6, "there is no nowhere; name events or a *.json with --events"),
        (["--recommend"], 6, "bench does not exist; create it with 'exatrkx-hpc bench --out FOLDER'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path: Path, words: list[str], code: int, says: str):
    program = tmp_path / "fake"
    program.write_text("#!/bin/sh\necho 'Perf Analyzer Version 1.2.3'\n")
    program.chmod(0o755)
    (tmp_path / "farm.toml").write_text(f'site = "local"\nrun_root = "run"\n[bench]\nperf_analyzer = ["{program}"]\n')
    assert says in complaint(exatrkx_hpc("bench", *words, cwd=tmp_path), code)
    assert not (tmp_path / "run").exists()


def test_full_nodes_are_filled_first():
    four = Farm.model_validate({"server": {"servers_per_node": 4}})
    assert [sized(four, servers, 1).job.nodes for servers in (1, 3, 4, 8)] == [1, 1, 1, 2]
    assert [sized(four, servers, 1).server.servers_per_node for servers in (1, 3, 4, 8)] == [1, 3, 4, 4]
    with pytest.raises(ConfigError, match=r"--servers 6 does not fill nodes of 4"):
        sized(four, 6, 1)
