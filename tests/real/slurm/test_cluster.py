"""The test cluster is a real Slurm that behaves like one, and goes without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, ClusterError, cgroups, cluster, missing
from cluster.config import Qos
from cluster.sight import TMP, covers, python_folders
from cluster.stale import running
from cluster.traces import Traces, links
from pages import consoles
from paths import ROOT
from waiting import until

from exatrkx_hpc.base.process import Completed, run, spawn


@pytest.fixture(scope="module")
def slurm(record_testsuite_property) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    began = time.monotonic()
    with cluster() as c:
        c.wait_idle()
        record_testsuite_property("cluster_up_seconds", round(time.monotonic() - began, 2))
        yield c


def batch(c: Cluster, text: str, *options: str, user: str = "physicist") -> str:
    """Submit a script and return the job's id."""
    done = c.run(["sbatch", "--parsable", *options], user=user, cwd=c.shared, stdin=f"#!/bin/bash\n{text}\n")
    assert done.returncode == 0, done.complaint
    return done.stdout.strip()


def state(c: Cluster, job: str) -> str:
    """The state of a job's last record in the accounting, which lags behind the queue."""
    done = c.run(["sacct", "-X", "--noheader", "--parsable2", f"--jobs={job}", "--format=State"])
    return (done.stdout.split("\n")[-2:] or [""])[0]


def good(done: Completed) -> str:
    assert done.returncode == 0, done.complaint
    return done.stdout


def test_users_run_jobs(slurm: Cluster) -> None:
    job = batch(slurm, "srun bash -c 'echo $(id -un) $(hostname)'; touch made", "-N3", "--output=%j.out", "--wait")
    said = (slurm.shared / f"{job}.out").read_text().splitlines()
    assert sorted(said) == ["physicist nid001", "physicist nid002", "physicist nid003"]
    assert (slurm.shared / "made").stat().st_uid == slurm.config.user("physicist").uid

    def queued() -> list[tuple[str, str, str]]:
        jobs = json.loads(good(slurm.run(["squeue", "--json"])))["jobs"]
        return [(j["user_name"], j["account"], j["job_state"]) for j in jobs if str(j["job_id"]) == job]

    # `--wait` ends with the script; the nodes may take a moment longer.
    until(lambda: queued() == [("physicist", "m1234", "COMPLETED")], what="its end in the queue")
    until(lambda: state(slurm, job) == "COMPLETED", what="the accounting knows the job")


def test_gpus_are_bound(slurm: Cluster) -> None:
    tell = ["bash", "-c", "echo $SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES"]
    options = ["srun", "-N2", "--ntasks-per-node=4", "--gpus-per-task=1"]
    lines = sorted(good(slurm.run([*options, *tell])).splitlines())
    assert lines == [f"{node} {gpu} {gpu}" for node in ("nid001", "nid002") for gpu in range(4)]
    whole = good(slurm.run(["srun", "--gpus-per-node=4", *tell]))
    assert whole.split()[-1] == "0,1,2,3"
    assert slurm.run(["srun", "--gpus-per-node=5", "true"]).returncode != 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--account=m9999"], "Invalid account"),
        (["--account=m5678"], "Invalid account"),
        (["--qos=premium"], "Invalid qos"),
        (["--qos=debug", "--time=01:00:00"], "QOSMaxWallDurationPerJobLimit"),
        (["--partition=nowhere"], "invalid partition"),
        (["--partition=short", "--time=01:00:00"], "time limit is invalid"),
        (["--constraint=cpu"], "Invalid feature"),
        (["--nodes=4"], "Node count specification invalid"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_slurm_refuses(slurm: Cluster, options: list[str], complaint: str) -> None:
    done = slurm.run(["sbatch", *options, "--wrap=true"])
    assert done.returncode == 1
    assert complaint in done.stderr


def test_another_user_has_other_rights(slurm: Cluster) -> None:
    job = batch(slurm, "sleep 600", user="colleague")
    try:
        assert slurm.run(["sbatch", "--qos=debug", "--wrap=true"], user="colleague").returncode == 1
        assert slurm.run(["sbatch", "--test-only", "--qos=debug", "--wrap=true"]).returncode == 0
        assert "denied" in slurm.run(["scancel", job]).stderr
    finally:
        good(slurm.run(["scancel", job], user="colleague"))
    assert slurm.run(["ls", str(slurm.home("colleague"))]).returncode != 0


def test_scancel_sends_sigterm_first(slurm: Cluster) -> None:
    job = batch(slurm, "srun bash -c 'trap \"echo told >told; exit\" TERM; touch begun; sleep 600 & wait'")
    until((slurm.shared / "begun").exists, what="the step runs")
    good(slurm.run(["scancel", job]))
    until(lambda: state(slurm, job).startswith("CANCELLED"), what="the accounting knows that it was cancelled")
    until((slurm.shared / "told").exists, what="the step was told")


def test_a_job_that_takes_too_much_memory_is_killed(slurm: Cluster) -> None:
    if not cgroups.available():
        pytest.skip("no memory cgroups of version 1 on this machine")
    job = batch(slurm, "python3 -c 'import time; hog = bytearray(300 << 20); time.sleep(5)'", "--mem=50")
    until(lambda: state(slurm, job) == "OUT_OF_MEMORY", what="the accounting knows that memory ran out")


def test_machines_are_apart(slurm: Cluster) -> None:
    node = slurm.node("nid002")
    good(slurm.run(["touch", "/tmp/here", "/dev/shm/here"]))
    assert node.run(["ls", "/tmp/here"]).returncode != 0
    assert not list(Path("/dev/shm").glob("here"))
    assert not Path("/tmp/here").exists()
    assert "slurmctld" not in good(node.run(["ps", "ax"], user="root"))
    for name, address in (("nid001", "10.77.0.1"), ("nid003-hsn0", "10.77.0.3"), ("head", "10.77.0.254")):
        assert good(node.run(["getent", "ahostsv4", name])).split()[0] == address
    assert good(node.run(["ip", "-4", "route"])).splitlines() == [
        "10.77.0.0/24 dev eth0 proto kernel scope link src 10.77.0.2 "
    ]
    assert good(node.run(["id", "-un"])) == "physicist\n"


def test_programs_run_inside_until_they_are_stopped(slurm: Cluster) -> None:
    log = slurm.shared / "spawned.log"
    program = slurm.head.spawn(
        ["bash", "-c", "trap 'echo told; exit 3' TERM; echo $GREETING; sleep 600 & wait"],
        log=log,
        env={"GREETING": "hello"},
    )
    until(lambda: "hello" in log.read_text(), what="it runs")
    assert Path(f"/proc/{program.pid}").stat().st_uid == slurm.config.user("physicist").uid
    program.send(signal.SIGTERM)
    assert program.wait(10) == 3
    assert log.read_text() == "hello\ntold\n"
    program.stop()
    assert slurm.run(["sleep", "60"], timeout=0.2).returncode == 124
    mine = ["ps", "-u", "physicist", "-o", "comm="]
    until(lambda: "sleep" not in good(slurm.run(mine)), what="what took too long has ended")


def test_the_commands_of_this_project_work(slurm: Cluster) -> None:
    assert "deploy" in good(slurm.run(["exatrkx-hpc", "--help"]))
    assert "deploy" in good(slurm.node("nid003").run(["exatrkx-hpc", "--help"]))


def test_slurmctld_may_be_away(slurm: Cluster) -> None:
    job = batch(slurm, "sleep 600")
    slurm.stop_controller()
    away = slurm.run(["squeue"])
    slurm.start_controller()
    assert away.returncode == 1
    assert "Unable to contact slurm controller" in away.stderr
    squeue = ["squeue", "--noheader", "--format=%i", "--states=PENDING,RUNNING"]
    assert good(slurm.run(squeue)).split() == [job]
    good(slurm.run(["scancel", job]))


def test_a_crash_and_a_partition_are_noticed_and_mended(slurm: Cluster) -> None:
    crashed, cut = slurm.node("nid002"), slurm.node("nid003")
    script = "srun bash -c 'touch on-$SLURMD_NODENAME; sleep 600'"
    job = batch(slurm, script, "-N2", "--nodelist=nid[001-002]", "--no-requeue")
    until((slurm.shared / "on-nid002").exists, what="the job runs on the node")
    probe = ["bash", "-c", "exec 3<>/dev/tcp/nid003/6818"]
    assert slurm.run(probe).returncode == 0

    crashed.crash()
    cut.partition()
    with pytest.raises(ClusterError, match="nid002 is off"):
        crashed.run(["true"])
    assert slurm.run(probe, timeout=2).returncode != 0
    assert "slurmd" in good(cut.run(["ps", "ax"], user="root"))
    down = {"nid002": "down*", "nid003": "down*"}
    until(lambda: down.items() <= slurm.node_states().items(), what="both are noticed", deadline=60)
    until(lambda: state(slurm, job) == "NODE_FAIL", what="the job has failed for it", deadline=60)

    cut.heal()
    crashed.boot()
    slurm.wait_idle("nid002")
    assert good(slurm.run(["srun", "--nodelist=nid002", "hostname"])) == "nid002\n"
    with pytest.raises(ClusterError, match="nid002 is on"):
        crashed.boot()
    slurm.wait_idle("nid003")


@pytest.mark.triton
def test_the_page_on_rehearsing_is_true(slurm: Cluster, triton: None) -> None:
    page = (ROOT / "docs" / "guides" / "rehearse.md").read_text()
    commands = [command for _, command in consoles(page, run_here=False) if not command.startswith("make ")]
    assert len(commands) > 10
    with_ids = "\n".join(commands).replace("deploy -N 2", "deploy -N 2 >job; job=$(cat job)")
    script = f"set -eo pipefail\ntrap 'kill %1 2>/dev/null || true; wait' EXIT\n{with_ids}\n"
    script = script.replace("monitor 1", "monitor $job").replace("stop 1", "stop $job")
    done = slurm.run(["bash", "-c", script], timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert len(list((slurm.home() / "results" / "labels").iterdir())) == 5


def test_nothing_is_left() -> None:
    if reason := missing():
        pytest.skip(reason)
    before = links()
    with cluster(ClusterConfig(nodes=2)) as c:
        traces = Traces.of(c)
        assert {line.split()[0] for line in traces.left()} >= {"process", "folder"}
        # Containers of other tests come and go meanwhile.
        until(lambda: not links() - before, what="no link of the cluster's beside its own network")
        c.wait_idle()
        batch(c, "srun bash -c 'touch /dev/shm/nid; touch begun; setsid sleep 600 & sleep 600'")
        until((c.shared / "begun").exists, what="a job runs")
        c.head.spawn(["sleep", "600"], log=c.shared / "log")
        c.node("nid002").crash()
        c.node("nid002").boot()
        os.kill(c.node("nid001").first, signal.SIGKILL)
    until(lambda: not traces.left(), what="nothing of the cluster, which the kernel may still be ending")
    until(lambda: not links() - before, what="no link that the cluster left")


def test_nothing_is_left_of_a_cluster_that_does_not_come_up() -> None:
    if reason := missing():
        pytest.skip(reason)
    c = Cluster(ClusterConfig(nodes=1, qos=(Qos(name="regular", max_wall="no time"),)))
    with pytest.raises(ClusterError, match="sacctmgr add qos regular"), c:
        pass
    assert not c.base.exists()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if c.base.name in words(entry)]


def words(entry: Path) -> str:
    try:
        return entry.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_what_others_may_not_enter_is_covered(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    kept = closed / "a" / "kept"
    kept.mkdir(parents=True)
    closed.chmod(0o700)
    assert [cover.folder for cover in covers([Path("/usr/lib")])] == [TMP]
    outermost = {cover.folder: cover.kept for cover in covers([kept])}
    assert all(kept in paths for folder, paths in outermost.items() if folder in kept.parents)
    assert any(folder in kept.parents for folder in outermost)
    assert all(path.is_absolute() for path in python_folders())


def test_a_machine_without_the_network_of_the_cluster() -> None:
    """Nothing on this machine leads to the cluster's addresses but the default route, which must stay unused."""
    routes = run(["ip", "-4", "route", "show", "10.77.0.0/24"])
    assert routes.stdout == ""
    assert socket.gethostname() != "head"


def test_a_second_terminal_joins_the_cluster_and_boots_a_node_that_crashed(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    program = [sys.executable, "-m", "cluster"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")}
    first = spawn([*program, "-c", "sleep 300"], log=tmp_path / "first.log", env=environment)
    try:

        def second(*words: str) -> Completed:
            return run([*program, *words], env=environment, timeout=150)

        def own() -> bool:
            return bool(base := running()) and f"-{first.pid}-" in base[-1].name

        until(own, what=f"a cluster: {(tmp_path / 'first.log').read_text()}", deadline=120)
        assert second("--join", "-c", "hostname; whoami; scontrol ping").stdout.startswith("head\nphysicist\nSlurmctld")
        assert second("--join", "--host", "nid002", "-c", "hostname; exit 3").returncode == 3
        node = running()[-1] / "hosts" / "nid002" / "first"
        before = node.read_text()
        os.kill(int(before), signal.SIGKILL)
        assert second("--join", "--host", "nid002", "-c", "true").returncode != 0
        assert second("--boot", "nid002").returncode == 0
        assert node.read_text() != before
        assert second("--join", "--host", "nid002", "-c", "hostname").stdout == "nid002\n"
        assert "no node is called 'nid009'" in second("--boot", "nid009").stderr
    finally:
        first.stop(grace=60)
    assert not list(Path(tempfile.gettempdir()).glob(f"exatrkx-cluster-{first.pid}-*"))
