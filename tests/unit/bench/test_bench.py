"""Scans before anything is started: the plan, the script of a job that measures itself, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command import complaint, exatrkx_hpc
from job_scripts import shellcheck

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.bench import direct
from exatrkx_hpc.bench.in_job import bench_command
from exatrkx_hpc.bench.places import sized
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.tracking.simulation.synthetic import write_events


def test_the_script_of_such_a_job_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every value that was set goes with the command, also those that a shell or the configuration would change."""
    pytest.importorskip("matplotlib")
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
    shellcheck([path])
    for name, value in (word.split("=", 1) for word in command if isinstance(word, str) and "EXATRKX_HPC_" in word):
        monkeypatch.setenv(name, value)
    again = resolve().farm
    assert (again.run_root, again.job) == (found.farm.run_root, found.farm.job)
    assert (again.bench, again.balancer.grpc_port, again.monitor.prometheus) == (found.farm.bench, 0, False)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-d", "nowhere"], 6, "nowhere does not exist; choose "),
        (["-d", "."], 3, "perf_analyzer"),
        (["--interactive"], 2, "cannot be combined with --with"),
    ],
)
def test_deploy_refuses_a_scan_that_could_not_work(tmp_path: Path, words: list[str], code: int, says: str):
    done = exatrkx_hpc("deploy", "--site", "local", "--run-root", "run", "--with", "bench", *words, cwd=tmp_path)
    assert says in complaint(done, code)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_pipeline_without_a_server_is_measured_in_several_processes(tmp_path: Path):
    pytest.importorskip("torch")
    from exatrkx_hpc.base.assets import asset

    write_events(tmp_path / "events", events=2, seed=1, tracks=3)
    with direct.running(asset("model_repos/exatrkx"), tmp_path / "events", 2) as work:
        figures = work(0.05)
        assert figures.per_second > 0
        assert 0 < figures.p50_ms <= figures.p99_ms
        assert work(0.05).per_second > 0


def test_a_process_of_the_pipeline_that_dies_within_its_answer_is_told(tmp_path: Path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/bash\necho ready\nread -r _\nprintf '{\"times\": [0.1'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with (
        pytest.raises(EndpointError, match="a process of the pipeline ended"),
        direct.running(tmp_path, tmp_path, 1) as work,
    ):
        work(0.05)


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
        (["-d", "nowhere"], 6, "nowhere does not exist; choose events or a *.json with --events"),
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
