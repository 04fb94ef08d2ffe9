"""The command line as a user meets it: help, results on stdout, and one line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from addresses import own_address
from command import PROGRAM, complaint, exatrkx_hpc
from fakes.running import fake_triton
from fakes.slurm import FAKES as FAKE_SLURM
from local_farms import FAKE_TRITON
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc import __version__
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.base.process import run, session_members, spawn
from exatrkx_hpc.models.build import build

COMMANDS = [
    [],
    ["demo"],
    ["init"],
    ["deploy"],
    ["monitor"],
    ["run-clients"],
    ["metrics"],
    ["score"],
    ["stop"],
    ["status"],
    ["logs"],
    ["setup"],
    ["doctor"],
    ["clean"],
    ["config"],
    ["config", "show"],
    ["config", "schema"],
    ["models"],
    ["models", "build"],
    ["models", "check"],
    ["models", "install"],
    ["models", "test"],
    ["models", "train"],
    ["events"],
    ["events", "generate"],
    ["events", "convert"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(tmp_path, words):
    done = exatrkx_hpc(*words, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: exatrkx-hpc" in done.stdout
    if words not in ([], ["config"], ["models"], ["events"]):
        assert f"Example: exatrkx-hpc {' '.join(words)}" in " ".join(done.stdout.split())


def test_the_version_is_the_packages(tmp_path):
    assert exatrkx_hpc("--version", cwd=tmp_path).stdout == f"exatrkx-hpc {__version__}\n"


@pytest.fixture
def events(tmp_path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "evt_0.csv").write_text("0.1,0.2,0.3\n0.1,0.2,0.4\n")
    return folder


def refused_endpoint() -> str:
    return f"127.0.0.1:{free_port('127.0.0.1')}"


def test_no_events_in_the_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    done = exatrkx_hpc("run-clients", "-s", refused_endpoint(), "-d", "empty", cwd=tmp_path)
    assert "no events (*.csv, " in complaint(done, 6)


def test_a_folder_that_does_not_exist(tmp_path):
    done = exatrkx_hpc("run-clients", "-s", refused_endpoint(), "-d", "nowhere", cwd=tmp_path)
    assert "nowhere" in complaint(done, 6)


def test_an_endpoint_that_refuses(tmp_path, events):
    server = refused_endpoint()
    done = exatrkx_hpc("run-clients", "-s", server, cwd=tmp_path)
    assert f"nothing answers at {server}" in complaint(done, 5)
    assert not (tmp_path / "results" / "labels" / "evt_0.csv").exists()


def test_no_endpoint_named_and_no_farm_watched(tmp_path, events):
    done = exatrkx_hpc("run-clients", cwd=tmp_path)
    assert "no monitor is running" in complaint(done, 5)
    assert "--server" in done.stderr


@pytest.mark.parametrize(("words", "said"), [(["-n", 0], "clients.workers"), (["-j", 0], "clients.in_flight")])
def test_no_worker_or_no_request_in_flight(tmp_path, events, words, said):
    done = exatrkx_hpc("run-clients", "-s", refused_endpoint(), *words, cwd=tmp_path)
    assert said in complaint(done, 2)
    assert "greater than or equal to 1" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [("0.1,0.2", "2 "), ("0.1,abc,0.3", "abc"), ("0.1,nan,0.3", "nan"), ("0.1,inf,0.3", "inf")],
    ids=["two columns", "text", "NaN", "infinity"],
)
def test_a_bad_event_fails_alone_with_its_file_and_line(tmp_path, events, line, said):
    (events / "evt_1.csv").write_text(f"0.1,0.2,0.3\n{line}\n")
    with fake_triton() as fake:
        done = exatrkx_hpc("run-clients", "-s", fake.server, "-n", 1, "-q", cwd=tmp_path)
    message = complaint(done, 9)
    assert "1 of 2 events have results" in message
    assert "evt_1.csv" in message
    assert "evt_1.csv:2:" in message
    assert said in message
    assert (tmp_path / "results" / "labels" / "evt_0.csv").exists()
    assert not (tmp_path / "results" / "labels" / "evt_1.csv").exists()


def test_results_are_a_table_for_people_and_json_for_programs(tmp_path, events):
    with fake_triton() as fake:
        table = exatrkx_hpc("run-clients", "-s", fake.server, "-n", 1, cwd=tmp_path)
        as_json = exatrkx_hpc("run-clients", "-s", fake.server, "-n", 1, "--json", cwd=tmp_path)
    assert "events/s" in table.stdout and "report.html" in table.stderr
    report = json.loads(as_json.stdout)
    assert (report["events"], report["done"], report["failed"]) == (1, 1, [])
    assert json.loads((tmp_path / "results" / "report.json").read_text())["done"] == 1


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "farm.toml").write_text("[job]\ngpu_per_node = 4\n")
    message = complaint(exatrkx_hpc("deploy", "--dry-run", cwd=tmp_path), 2)
    assert "farm.toml: unknown key 'job.gpu_per_node'; did you mean 'job.gpus_per_node'?" in message


def test_deploy_without_slurm_says_so(tmp_path):
    build(asset("model_repos/exatrkx"), tmp_path / "exatrkx-hpc" / "model_repository", device="gpu")
    message = complaint(exatrkx_hpc("deploy", "--site", "generic", cwd=tmp_path, env={"PATH": "/nowhere"}), 3)
    assert "sbatch is not on PATH" in message


def test_deploy_without_models_says_how_to_make_them(tmp_path):
    stub = {"PATH": f"{FAKE_SLURM}{os.pathsep}{os.environ['PATH']}"}
    message = complaint(exatrkx_hpc("deploy", "--site", "generic", cwd=tmp_path, env=stub), 4)
    assert f"run_root {tmp_path}/exatrkx-hpc is " in message and "or use --trust-run-root" in message, "told first"
    assert message == complaint(exatrkx_hpc("setup", "--site", "generic", cwd=tmp_path), 4)
    message = complaint(exatrkx_hpc("deploy", "--site", "generic", "--trust-run-root", cwd=tmp_path, env=stub), 7)
    assert "exatrkx-hpc models build --device gpu" in message


def test_the_partition_is_a_flag(tmp_path):
    script = exatrkx_hpc("deploy", "--site", "generic", "--partition", "gpu", "--dry-run", cwd=tmp_path).stdout
    assert "#SBATCH --partition=gpu\n" in script and '#   job.partition = "gpu"  <- flag\n' in script


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-t", "1"], "job.time is 1 (60 s), but Slurm signals the job to end 60 to 120 s before that (B:TERM@60)"),
        (["-t", "00:02:00"], "job.time is 00:02:00 (120 s)"),
        (["-t", "00:02:01"], ""),
        (["-t", "0"], ""),
    ],
)
def test_a_time_limit_that_leaves_no_time_is_told(tmp_path, words, told):
    tiny_repository(tmp_path / "exatrkx-hpc" / "model_repository")
    env = {"PATH": f"{FAKE_SLURM}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path)}
    done = exatrkx_hpc("deploy", "--site", "generic", "--trust-run-root", *words, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (0, "4242\n"), done.stderr
    assert ("job.time" in done.stderr) == bool(told) and told in done.stderr


@pytest.mark.parametrize("command", ["monitor", "stop"])
def test_an_unknown_job(tmp_path, command):
    assert "no job '77'" in complaint(exatrkx_hpc(command, 77, cwd=tmp_path), 4)


def test_metrics_of_nobody(tmp_path):
    message = complaint(exatrkx_hpc("metrics", "--server", refused_endpoint(), cwd=tmp_path), 5)
    assert "nothing answers at" in message


def test_a_repository_with_a_weight_missing(tmp_path):
    build(asset("model_repos/exatrkx"), tmp_path / "models", device="cpu")
    (tmp_path / "models" / "gnn" / "1" / "model.pt").unlink()
    done = exatrkx_hpc("models", "check", "models", cwd=tmp_path)
    assert done.returncode == 7
    assert "gnn: 1/model.pt is missing" in done.stdout
    assert "1 error(s)" in complaint(done, 7)
    found = json.loads(exatrkx_hpc("models", "check", "models", "--json", cwd=tmp_path).stdout)
    assert [finding["model"] for finding in found] == ["gnn"]


def test_events_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write events to file/x" in complaint(
        exatrkx_hpc("events", "generate", "-o", "file/x", cwd=tmp_path), 8
    )


def test_the_same_seed_makes_the_same_events(tmp_path):
    for out in ("one", "two"):
        done = exatrkx_hpc("events", "generate", "-o", out, "--events", 2, "--tracks", 5, cwd=tmp_path)
        assert done.returncode == 0
    for path in (tmp_path / "one").rglob("*.csv"):
        assert path.read_text() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_text()


def test_a_demo_never_touches_what_is_not_its_own(tmp_path, events):
    message = complaint(exatrkx_hpc("demo", "--folder", ".", cwd=tmp_path), 8)
    assert "contains files that the demo did not write" in message
    assert (events / "evt_0.csv").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be used" in complaint(exatrkx_hpc("demo", "--folder", "file", cwd=tmp_path), 8)


NODE = own_address()


@pytest.fixture
def deployed(tmp_path, nginx, monkeypatch):
    """A job of one fake server on this machine, started by the command line."""
    (tmp_path / "models").mkdir()
    build(asset("model_repos/exatrkx"), tmp_path / "exatrkx-hpc" / "model_repository", device="cpu")
    ports = f"grpc_port = {free_port('127.0.0.1')}\nhttp_port = {free_port('127.0.0.1')}"
    (tmp_path / "farm.toml").write_text(
        f'site = "local"\n[cluster]\nlocal_address = "{NODE}"\n[job]\nnodes = 1\n[server]\ntriton = "{FAKE_TRITON}"\n'
        f"drain = 1\n[balancer]\n{ports}\n[monitor]\nprometheus = false\ntrial = false\n"
    )
    done = exatrkx_hpc("deploy", cwd=tmp_path)
    assert done.stdout == "1\n", done.stderr
    yield tmp_path
    exatrkx_hpc("stop", "1", cwd=tmp_path)


def test_status_tells_of_jobs_and_servers(deployed):
    until(lambda: "1 of 1" in exatrkx_hpc("status", cwd=deployed).stdout, what="a ready server")
    one = json.loads(exatrkx_hpc("status", "1", "--json", cwd=deployed).stdout)
    assert [(job["job"], job["state"], job["ready"]) for job in one] == [("1", "RUNNING", 1)]
    assert [server["state"] for server in one[0]["servers"]] == ["ready"]
    assert f"{NODE}-0" in exatrkx_hpc("status", "1", cwd=deployed).stdout
    exatrkx_hpc("stop", cwd=deployed)
    assert "CANCELLED" in exatrkx_hpc("status", cwd=deployed).stdout


def test_logs_show_the_end_of_each_and_one_alone(deployed):
    log = deployed / "exatrkx-hpc" / "1" / "logs" / f"{NODE}-0.log"
    until(log.exists, what="a log")
    log.write_text("".join(f"line {n}\n" for n in range(50)))
    shown = exatrkx_hpc("logs", "1", f"{NODE}-0", "-n", 3, cwd=deployed).stdout
    assert shown == f"==> {log} <==\nline 47\nline 48\nline 49\n"
    log.write_text("error: creating server: Internal - no\n" + "".join(f"line {n}\n" for n in range(50)))
    shown = exatrkx_hpc("logs", "1", f"{NODE}-0", "-n", 1, cwd=deployed).stdout
    why = f"==> what failed <==\n{NODE}-0: error: creating server: Internal - no\n"
    assert shown == f"{why}==> {log} <==\nline 49\n"
    assert "no log of nobody" in complaint(exatrkx_hpc("logs", "1", "nobody", cwd=deployed), 6)


def test_clean_removes_ended_jobs_and_nothing_else(deployed):
    root = deployed / "exatrkx-hpc"
    other = root / "mine"
    other.mkdir()
    assert exatrkx_hpc("clean", "--older-than", "0m", cwd=deployed).stdout.startswith("0 run directories")
    assert (root / "1").is_dir(), "a running job keeps its directory"
    exatrkx_hpc("stop", cwd=deployed)
    assert exatrkx_hpc("clean", "--older-than", "7d", cwd=deployed).stdout.startswith("0 run directories")
    assert exatrkx_hpc("clean", "--older-than", "0m", cwd=deployed).stdout == "1 run directories removed: 1\n"
    assert not (root / "1").exists()
    assert other.is_dir() and (root / "model_repository").is_dir()
    assert "is not a valid age" in complaint(exatrkx_hpc("clean", "--older-than", "soon", cwd=deployed), 2)


def test_doctor_names_what_is_missing_and_the_remedy(tmp_path):
    done = exatrkx_hpc("doctor", "--site", "generic", "--json", cwd=tmp_path, env={"PATH": "/nowhere"})
    assert done.returncode == 3
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert not found["sbatch"]["ok"] and "login node" in found["sbatch"]["remedy"]
    assert not found["models"]["ok"] and "models build" in found["models"]["remedy"]
    assert found["run root"]["ok"]


@pytest.mark.parametrize("argv", [[PROGRAM], [sys.executable, "-m", "exatrkx_hpc"]], ids=["program", "module"])
def test_ctrl_c_before_anything_has_begun_just_ends_it(tmp_path, argv):
    """Most of a second goes to the import of the program; a user who is quicker sees no traceback."""
    interrupted = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('it went on')"
    (tmp_path / "typer.py").write_text(interrupted)
    done = run([*argv, "--version"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_monitor_that_is_ended_leaves_the_servers_and_nothing_else(deployed, end):
    log = deployed / "monitor.log"
    child = spawn([PROGRAM, "monitor"], log=log, cwd=deployed, env={**os.environ, "HOME": str(deployed)})
    try:
        until(lambda: "1 ready" in log.read_text(), what="a ready server")
        assert exatrkx_hpc("monitor", cwd=deployed).returncode == 5
        before = session_members(child.pid)
        child.send(end)
        assert child.wait(20) == (0 if end is signal.SIGINT else 128 + end), log.read_text()
        assert [pid for pid in before if Path(f"/proc/{pid}").exists()] == []
    finally:
        child.stop(grace=1)
    assert not (deployed / "exatrkx-hpc" / "1" / "endpoint.json").exists()
    record = json.loads((deployed / "exatrkx-hpc" / "1" / "records" / f"{NODE}-0.json").read_text())
    assert record["state"] == "starting"


def test_a_port_in_use_for_the_endpoint(deployed):
    port = int(next(line for line in (deployed / "farm.toml").read_text().splitlines() if "grpc" in line).split()[-1])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"port {port} of 127.0.0.1" in complaint(exatrkx_hpc("monitor", cwd=deployed), 5)


def test_stop_drains_and_the_monitor_ends_by_itself(deployed):
    log = deployed / "monitor.log"
    child = spawn([PROGRAM, "monitor", "1"], log=log, cwd=deployed, env={**os.environ, "HOME": str(deployed)})
    try:
        until(lambda: "1 ready" in log.read_text(), what="a ready server")
        done = exatrkx_hpc("stop", cwd=deployed)
        assert done.stdout == "job 1: CANCELLED\n"
        assert child.wait(20) == 0
    finally:
        child.stop(grace=1)
    assert f"{NODE}-0: draining" in log.read_text()
