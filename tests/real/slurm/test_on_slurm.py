"""The whole way on a real Slurm of three nodes, as an ordinary user: deploy, monitor, run-clients, stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, Entered, cluster, missing
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.models.build import build
from exatrkx_hpc.tracking.simulation.synthetic import write_events

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx", "prometheus")]

FARM = """\
site = "generic"
[job]
account = "m1234"
partition = "gpu"
gpus_per_node = 4
time = "00:10:00"
[server]
device = "cpu"
drain = 2
exit_timeout = 5
extra_arguments = ["--disable-auto-complete-config"]
[balancer]
host = "127.0.0.1"
[monitor]
prometheus = false
"""


@dataclass(frozen=True)
class Site:
    """The cluster, and the user's home on it."""

    cluster: Cluster

    @property
    def home(self) -> Path:
        return self.cluster.home()

    def do(self, *words: object, timeout: float = 120) -> Completed:
        """Run a command on the head as the user, in the home folder."""
        return self.cluster.run([str(word) for word in words], cwd=self.home, timeout=timeout)

    def good(self, *words: object, timeout: float = 120) -> str:
        done = self.do(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def status(self, job: str) -> dict:
        return json.loads(self.good("exatrkx-hpc", "status", job, "--json"))[0]

    def monitor(self, job: str):
        """Start a monitor and return its log; stop what the pair's first part is."""
        log = self.home / f"monitor-{job}.log"
        return self.cluster.head.spawn(["exatrkx-hpc", "monitor", job], log=log, cwd=self.home), log


def _copy_events(folder: Path, *, turns: int) -> None:
    """Each of the 16 reference events so often, under new names; without the reference data, as many made ones."""
    reference = os.environ.get("EXATRKX_REFERENCE_DATA")
    if not reference:
        write_events(folder, events=16 * turns, tracks=40, seed=8)
        return
    folder.mkdir()
    for event in Path(reference, "exatrkx", "events_scaled").glob("*.csv"):
        for turn in range(turns):
            shutil.copyfile(event, folder / f"{event.stem}_{turn}.csv")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(kill_wait=5)) as c:
        c.wait_idle()
        made = Site(c)
        (made.home / "farm.toml").write_text(FARM)
        _copy_events(made.home / "events", turns=10)
        _copy_events(made.home / "many", turns=60)
        write_events(made.home / "few", events=40, tracks=40, seed=8)
        build(asset("model_repos/exatrkx"), made.home / "exatrkx-hpc" / "model_repository", device="cpu", fused=False)
        _give(made, made.home)
        yield made


def _give(site: Site, folder: Path) -> None:
    user = site.cluster.config.user("physicist")
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, user.uid, user.uid)


@contextlib.contextmanager
def two_nodes(site: Site) -> Iterator[tuple[str, Path]]:
    """A job of two nodes and the log of its monitor; both end with the block."""
    job = site.good("exatrkx-hpc", "deploy", "-N", 2, "--wait", 120, timeout=150).strip()
    child, log = site.monitor(job)
    try:
        until(lambda: "2 ready" in log.read_text(), what=f"two ready servers: {log.read_text()}", deadline=120)
        yield job, log
    finally:
        site.do("exatrkx-hpc", "stop", job)
        child.stop(grace=20)


@pytest.fixture(scope="module")
def pair(site) -> Iterator[tuple[str, Path]]:
    """The job that the first tests share, one after the other; the last of them stops it."""
    with two_nodes(site) as both:
        yield both


def gone(site: Site) -> bool:
    return site.good("squeue", "--noheader") == ""


def processes(site: Site) -> str:
    """What the user still runs on the nodes."""
    nodes = ("nid001", "nid002", "nid003")
    return "".join(site.cluster.node(n).run(["pgrep", "-u", "physicist", "-a"], user="root").stdout for n in nodes)


def test_the_whole_way(site, pair):
    job, _ = pair
    report = json.loads(site.good("exatrkx-hpc", "run-clients", "-n", 8, "-j", 4, "--json", "-q", timeout=300))
    assert (report["events"], report["done"], report["failed"]) == (160, 160, [])
    status = site.status(job)
    assert (status["state"], status["ready"]) == ("RUNNING", 2)
    assert sorted(server["node"] for server in status["servers"]) == sorted(status["nodes"])
    assert 0 < status["time_left_s"] <= 600
    for server in status["servers"]:
        address = f"{server['address']}:{server['metrics_port']}"
        rows = json.loads(site.good("exatrkx-hpc", "metrics", "--server", address, "--json"))
        assert next(row for row in rows if row["model"] == "exatrkx")["successes"] > 0, f"{server['node']} was idle"


def begin_clients(site: Site, out: str) -> Entered:
    """Start clients over so many events that they outlast a drain, and return when the first labels are there."""
    words = ["run-clients", "-d", "many", "-o", out, "-n", "2", "-j", "2", "--json", "-q"]
    env = {"EXATRKX_HPC_CLIENTS_PATIENCE": "5", "EXATRKX_HPC_CLIENTS_REQUEST_TIMEOUT": "20"}
    log = site.home / f"{out}.log"
    running = site.cluster.head.spawn(["exatrkx-hpc", *words], log=log, cwd=site.home, env=env)
    labels = site.home / out / "labels"
    until(lambda: labels.is_dir() and len(list(labels.iterdir())) > 5, what="the first labels", deadline=60)
    assert running.returncode() is None, log.read_text()
    return running


@pytest.mark.chaos
def test_a_drain_loses_nothing_while_another_server_is_there(site, pair):
    """One of two servers drains under load: no event fails. Then `stop` drains the other: the clients say so."""
    job, log = pair
    leaving, staying = site.status(job)["servers"]
    running = begin_clients(site, "drained")
    script = leaving["instance"].rpartition("/")[2]  # the process of its server.sh
    assert site.cluster.node(leaving["node"]).run(["kill", "-TERM", script]).returncode == 0
    until(lambda: f"{leaving['server']}: gone (drained)" in log.read_text(), what="its end", deadline=60)
    assert running.wait(120) == 0, running.log.read_text()
    report = json.loads(running.log.read_text())
    assert (report["events"], report["done"], report["failed"]) == (960, 960, [])
    assert site.status(job)["ready"] == 1

    running = begin_clients(site, "stopped")
    assert site.good("exatrkx-hpc", "stop", job) in (f"job {job}: COMPLETED\n", f"job {job}: CANCELLED\n")
    assert running.wait(120) == 9, running.log.read_text()
    told = json.loads(running.log.read_text().splitlines()[-1])["error"]
    assert "no results from" in told["message"] and told["exit_code"] == 9
    left = {path.stem for path in (site.home / "stopped" / "labels").iterdir()}
    report = json.loads((site.home / "stopped" / "report.json").read_text())
    assert report["done"] == len(left) < 960
    until(lambda: gone(site), what="an empty queue")
    assert processes(site) == ""
    until(lambda: f"{staying['server']}: draining" in log.read_text(), what="the drain in the monitor's log")
    for node in ("nid001", "nid002"):
        assert site.cluster.node(node).run(["ls", "/dev/shm"], user="root").stdout == ""


@pytest.fixture(scope="module")
def small(site) -> Path:
    """A model repository with one model that starts soon."""
    folder = site.home / "small"
    shutil.copytree(site.home / "exatrkx-hpc" / "model_repository" / "frnn", folder / "frnn")
    _give(site, folder)
    return folder


def test_the_script_serves_when_it_is_submitted_by_hand(site, small):
    script = site.home / "by-hand.sbatch"
    words = ["env", f"EXATRKX_HPC_SERVER_MODEL_REPOSITORY={small}", "exatrkx-hpc", "deploy", "-N", 1, "--dry-run"]
    script.write_text(site.good(*words))
    job = site.good("sbatch", "--parsable", script).strip()
    until((site.home / "exatrkx-hpc" / job / "records").is_dir, what="the job's own folder")
    until(lambda: site.status(job)["ready"] == 1, what="a ready server", deadline=120)
    site.good("exatrkx-hpc", "stop", job)
    until(lambda: gone(site), what="an empty queue")


def test_one_server_a_gpu(site, small):
    """Eight servers on two nodes, each with its own ports and its own GPU; a small model, for the sake of time."""
    variables = {
        "EXATRKX_HPC_SERVER_MODEL_REPOSITORY": str(small),
        "EXATRKX_HPC_SERVER_SERVERS_PER_NODE": "4",
        "EXATRKX_HPC_SERVER_GPUS_PER_SERVER": "1",
    }
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), "exatrkx-hpc", "deploy", "-N", "2"]
    job = site.good(*words).strip()
    try:
        until(lambda: site.status(job)["ready"] == 8, what="eight ready servers", deadline=180)
        servers = site.status(job)["servers"]
        assert len({(s["node"], s["http_port"]) for s in servers}) == 8
        assert len({(s["node"], s["gpus"]) for s in servers}) == 8
        assert {s["gpus"] for s in servers} == {"0", "1", "2", "3"}
    finally:
        site.good("exatrkx-hpc", "stop", job)
    until(lambda: gone(site), what="an empty queue")


@pytest.mark.chaos
def test_a_crashed_node_leaves_the_other_serving(site):
    with two_nodes(site) as (job, log):
        crash_one(site, job, log)


def crash_one(site: Site, job: str, log: Path) -> None:
    victim = site.status(job)["nodes"][0]
    site.cluster.node(victim).crash()
    try:
        until(lambda: f"{victim}-0: gone" in log.read_text(), what="its departure", deadline=35)
        words = ("run-clients", "-d", "few", "-o", "few-results", "-n", 2, "--json", "-q")
        report = json.loads(site.good("exatrkx-hpc", *words, timeout=300))
        assert (report["done"], report["failed"]) == (40, [])
        until(lambda: "lost" in site.status(job)["reason"], what="Slurm's word on the node", deadline=60)
        status = site.status(job)
        assert (status["ready"], status["reason"]) == (1, f"lost {victim}; the other servers keep running")
        notes = {server["node"]: server["note"] for server in status["servers"]}
        assert notes[victim] == "its node has left the job"
        until(lambda: f"job: RUNNING (lost {victim}" in log.read_text(), what="the monitor's word on it")
    finally:
        site.do("scancel", job)  # the batch script has gone with its node: `stop` would wait its whole grace for it
        site.cluster.node(victim).boot()
        site.cluster.wait_idle(victim)


def test_doctor_finds_the_cluster_fit_and_names_what_is_not(site):
    found = {one["what"]: one for one in json.loads(site.good("exatrkx-hpc", "doctor", "--json"))}
    assert all(one["ok"] for one in found.values())
    assert "nid00" in found["job"]["found"]
    done = site.do("env", "EXATRKX_HPC_JOB_QOS=nonsense", "exatrkx-hpc", "doctor", "--json")
    assert done.returncode == 3
    wrong = [one for one in json.loads(done.stdout) if not one["ok"]]
    assert [one["what"] for one in wrong] == ["job"]
    assert "qos" in wrong[0]["found"].lower()
