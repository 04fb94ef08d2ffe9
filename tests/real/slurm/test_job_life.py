"""A job's life on a real Slurm, told truthfully: how it ended, that it waits, that Slurm is away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, Entered, cgroups, cluster, missing
from paths import FAKES
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import Completed

pytestmark = pytest.mark.usefixtures("nginx")

FARM = """\
site = "generic"
[job]
account = "m1234"
partition = "gpu"
gpus_per_node = 4
time = "00:10:00"
[server]
triton = "{home}/triton"
model_repository = "{home}/models"
device = "cpu"
drain = 1
exit_timeout = 2
max_restarts = 2
[balancer]
host = "127.0.0.1"
grpc_port = 0
http_port = 0
[monitor]
prometheus = false
trial = false
"""
HOG = "#!/usr/bin/env python3\nimport time\nhog = bytearray(300 << 20)\ntime.sleep(600)\n"
#: A person must know the truth within this many seconds.
SOON = 35


@dataclass
class Site:
    """The cluster with a user's home on it, and the monitors that run there."""

    cluster: Cluster
    monitors: dict[str, Entered] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.cluster.home()

    def do(self, *words: object, env: Mapping[str, str] | None = None) -> Completed:
        """Run a command on the head as the user, in the home folder."""
        return self.cluster.run([str(word) for word in words], cwd=self.home, env=env, timeout=120)

    def good(self, *words: object, env: Mapping[str, str] | None = None) -> str:
        done = self.do(*words, env=env)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def deploy(self, *words: object, **settings: str) -> str:
        """Submit a farm, with settings such as job__time, and return the job's id."""
        env = {f"EXATRKX_HPC_{name.upper()}" if "__" in name else name: value for name, value in settings.items()}
        env = {name.replace("__", "_"): value for name, value in env.items()}
        return self.good("exatrkx-hpc", "deploy", *words, env=env).strip()

    def monitor(self, job: str) -> Entered:
        log = self.home / f"monitor-{job}.log"
        self.monitors[job] = self.cluster.head.spawn(["exatrkx-hpc", "monitor", job], log=log, cwd=self.home)
        return self.monitors[job]

    def said(self, job: str) -> str:
        return (self.home / f"monitor-{job}.log").read_text()

    def until_said(self, job: str, text: str, *, deadline: float = SOON) -> None:
        until(lambda: text in self.said(job), what=f"{text!r} of the monitor: {self.said(job)}", deadline=deadline)

    def status(self, job: str) -> dict:
        return json.loads(self.good("exatrkx-hpc", "status", job, "--json"))[0]

    def told_by_status(self, job: str, state: str, text: str) -> dict:
        """Wait until `status` says both, and return it."""
        seen: dict = {}

        def told() -> bool:
            seen.update(self.status(job))
            return seen["state"] == state and text in seen["reason"]

        until(told, what=f"{state} with {text!r}: {seen}", deadline=SOON)
        return seen

    def records(self, job: str) -> list[dict]:
        folder = self.home / "exatrkx-hpc" / job / "records"
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]

    def node_of(self, job: str) -> str:
        return self.records(job)[0]["node"]

    def kill_server(self, job: str, node: str) -> None:
        """SIGKILL the program of a server, as the kernel does when a machine has no memory left."""
        record = next(r for r in self.records(job) if r["node"] == node)
        self.cluster.node(node).run(["kill", "-KILL", str(record["pid"])], user="root")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(nodes=8, kill_wait=5)) as c:
        c.wait_idle()
        made = Site(c)
        (made.home / "farm.toml").write_text(FARM.format(home=made.home))
        shutil.copytree(asset("model_repos/exatrkx/frnn"), made.home / "models" / "frnn")
        shutil.copy(FAKES / "fake_tritonserver", made.home / "triton")
        (made.home / "hog").write_text(HOG)
        for program in ("triton", "hog"):
            (made.home / program).chmod(0o755)
        for path in made.home.rglob("*"):
            shutil.chown(path, c.config.user("physicist").uid)
        yield made
        for monitor in made.monitors.values():
            monitor.stop(grace=20)


@dataclass(frozen=True, kw_only=True)
class Life:
    """How a job is submitted, what then happens to it, and what is to be told: state, words, the monitor's status."""

    settings: Mapping[str, str]
    happens: Callable[[Site, str], object] = lambda site, job: None
    state: str
    says: tuple[str, ...]
    status: int = 4


def _out_of_time(site: Site, job: str) -> None:
    # The owner of a job can shorten it to the second; Slurm looks at the limits every 30 s.
    site.good("scontrol", "update", f"jobid={job}", "EndTime=now+1")


LIVES = {
    "out-of-time": Life(
        settings={"job__signal": ""},
        happens=_out_of_time,
        state="TIMEOUT",
        says=("it reached its time limit", "resubmit it with 'exatrkx-hpc deploy'", "job.time"),
    ),
    "node-failed": Life(
        settings={},
        happens=lambda site, job: site.cluster.node(site.node_of(job)).crash(),
        state="NODE_FAIL",
        says=("a node of it failed", "job.requeue"),
    ),
    "told-of-its-limit": Life(
        settings={"job__time": "00:01:00"},
        state="COMPLETED",
        says=("time limit: drained on Slurm's signal", "job.time"),
        status=0,
    ),
    "stopped": Life(
        settings={},
        happens=lambda site, job: site.good("scancel", "--batch", "--signal=USR2", job),
        state="COMPLETED",
        says=("drained, as 'exatrkx-hpc stop' asked",),
        status=0,
    ),
    "cancelled": Life(
        settings={},
        happens=lambda site, job: site.good("scancel", job),
        state="CANCELLED",
        says=("it was cancelled", "resubmit it with 'exatrkx-hpc deploy'"),
        status=0,
    ),
    "failed": Life(
        settings={"FAKE_TRITON": "exit:3", "server__max_restarts": "0"},
        state="FAILED",
        says=("ended with status 3 at start number 1; gave up", "'exatrkx-hpc logs"),
    ),
    "out-of-memory": Life(
        settings={"job__memory": "60M", "server__triton": "hog", "server__max_restarts": "0"},
        state="OUT_OF_MEMORY",
        says=("ran out of memory", "job.memory"),
    ),
}


@pytest.fixture(scope="module")
def lives(site) -> dict[str, str]:
    """The jobs of LIVES, each with its monitor; to each has happened what happens to it. Their ids by name."""
    jobs = {}
    for name, life in LIVES.items():
        hog = {"server__triton": str(site.home / "hog")} if "server__triton" in life.settings else {}
        jobs[name] = site.deploy(**{**life.settings, **hog})
        site.monitor(jobs[name])
        if name in ("out-of-time", "node-failed"):  # these take longest to be noticed
            _let_happen(site, name, jobs[name])
    for name in ("stopped", "cancelled"):
        _let_happen(site, name, jobs[name])
    return jobs


def _let_happen(site: Site, name: str, job: str) -> None:
    site.until_said(job, "1 ready", deadline=60)
    LIVES[name].happens(site, job)


@pytest.fixture(scope="module")
def ended(site, lives) -> dict[str, dict]:
    """What `status` says of the jobs of LIVES when each monitor has ended, by their names."""
    for job in lives.values():
        assert site.monitors[job].wait(SOON + 30) is not None, site.said(job)
    told = {one["job"]: one for one in json.loads(site.good("exatrkx-hpc", "status", "--json"))}
    return {name: told[job] for name, job in lives.items()}


@pytest.mark.chaos
@pytest.mark.parametrize("name", LIVES)
def test_an_end_is_named_with_the_next_step(site, lives, ended, name):
    life, job, told = LIVES[name], lives[name], ended[name]
    if name == "out-of-memory" and not cgroups.available():
        pytest.skip("no memory cgroups of version 1 on this machine")
    last = site.said(job).splitlines()[-1]
    for words in (life.state, *life.says):
        assert words in last
        assert words in f"{told['state']} {told['reason']}"
    assert site.monitors[job].returncode() == life.status
    assert all(server["state"] == "gone" for server in told["servers"])


def test_the_table_names_each_end(site, lives, ended):
    rows = [line.split("│") for line in site.good("exatrkx-hpc", "status").splitlines() if "│" in line]
    states = {row[1].strip(): row[2].strip() for row in rows if row[1].strip()}
    assert states == {job: LIVES[name].state for name, job in lives.items()}
    notes = " ".join(row[-2].strip() for row in rows)
    assert all(life.says[0].split(";")[0][:20] in notes for life in LIVES.values())


def test_a_job_that_has_ended_is_not_watched(site, lives, ended):
    done = site.do("exatrkx-hpc", "monitor", lives["failed"])
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert "is FAILED" in line and "gave up" in line and "nothing to monitor" in line


@pytest.fixture(scope="module")
def pair(site, ended) -> str:
    """A job of two ready servers with its monitor."""
    job = site.deploy("-N", "2", job__requeue="true")
    site.monitor(job)
    site.until_said(job, "2 ready", deadline=60)
    return job


def test_a_job_that_waits_says_why(site, pair):
    """More nodes than are free: `monitor` waits for them."""
    job = site.deploy("-N", "8")
    monitor = site.monitor(job)
    try:
        site.until_said(job, "job: PENDING (")
        assert "'squeue --me --start' shows the" in site.said(job)
        told = site.status(job)
        assert told["state"] == "PENDING"
        assert any(word in told["reason"] for word in ("no nodes are free", "other jobs have higher priority", "down"))
        assert monitor.returncode() is None
    finally:
        site.good("scancel", job)
    assert monitor.wait(SOON) == 0
    assert "CANCELLED" in site.said(job).splitlines()[-1]


@pytest.mark.chaos
def test_a_crashed_server_starts_again_after_growing_pauses(site, pair):
    """A server that was ready is never given up."""
    node = site.records(pair)[0]["node"]

    def starts() -> int:
        return next(r["starts"] for r in site.records(pair) if r["node"] == node)

    for start in (1, 2, 3):
        site.kill_server(pair, node)
        until(lambda start=start: starts() == start + 1, what="the next start")
        gone, back = (
            f"{node}-0: gone (ended with status 137; starts again in {2**start} s), 1 ready",
            f"{node}-0: ready (answers), 2 ready",
        )
        until(lambda: gone in site.said(pair), what=f"{gone}: {site.said(pair)}")  # noqa: B023
        until(lambda: site.said(pair).rfind(back) > site.said(pair).rfind(gone), what="two ready servers")  # noqa: B023
    assert site.status(pair)["state"] == "RUNNING"


@pytest.mark.chaos
def test_slurm_is_away_and_comes_back(site, pair):
    endpoint = site.status(pair)["endpoint"]
    site.cluster.stop_controller()
    asking = {
        command: site.cluster.head.spawn(["exatrkx-hpc", command], log=site.home / f"{command}.log", cwd=site.home)
        for command in ("status", "deploy")
    }
    try:
        site.until_said(pair, "job: state unknown, the endpoint keeps running (Unable to contact slurm controller")
        for command, asks in asking.items():
            assert asks.wait(60) == 4
            (line,) = (site.home / f"{command}.log").read_text().splitlines()
            assert "Unable to contact slurm controller" in line and "scontrol ping" in line
    finally:
        site.cluster.start_controller()
    site.until_said(pair, "job: RUNNING, Slurm answers again")
    assert site.said(pair).count("job: state unknown") == 1
    assert site.monitors[pair].returncode() is None
    told = site.status(pair)
    assert (told["state"], told["ready"], told["endpoint"]) == ("RUNNING", 2, endpoint)


@pytest.mark.chaos
def test_a_requeued_job_begins_anew(site, pair):
    """After the other tests of the pair: one of its servers has given up, which its next run knows nothing of."""
    before = site.said(pair)
    (site.home / "exatrkx-hpc" / pair / "stop").write_text("drain\n")
    site.good("scontrol", "requeue", pair)
    site.until_said(pair, "job: PENDING (requeued, BeginTime")
    told = site.told_by_status(pair, "PENDING", "requeued, BeginTime")
    assert told["ready"] == 0
    assert {server["state"] for server in told["servers"]} == {"gone"}
    site.good("scontrol", "update", f"jobid={pair}", "StartTime=now")
    until(lambda: "2 ready" in site.said(pair)[len(before) :], what=f"two ready: {site.said(pair)}", deadline=60)
    told = site.told_by_status(pair, "RUNNING", "")
    assert (told["ready"], [server["starts"] for server in told["servers"]]) == (2, [1, 1])
    assert (
        "restart 1 of the job"
        in (site.home / "exatrkx-hpc" / pair / "logs" / f"{site.node_of(pair)}-0.log").read_text()
    )
    site.good("exatrkx-hpc", "stop", pair)
    assert site.monitors[pair].wait(SOON) == 0
    assert "COMPLETED (drained, as 'exatrkx-hpc stop' asked)" in site.said(pair).splitlines()[-1]


@pytest.mark.chaos
def test_a_job_without_its_first_node_drains_and_ends(site):
    """Its script is lost with that node, so the stop request comes from `stop` itself."""
    job = site.deploy("-N", "2")
    until(lambda: site.status(job)["ready"] == 2, what="two ready servers", deadline=60)
    first, other = sorted(record["node"] for record in site.records(job))
    site.cluster.node(first).crash()
    site.told_by_status(job, "RUNNING", f"lost {first}")
    done = site.do("exatrkx-hpc", "stop", job)
    assert done.returncode == 0 and done.stdout.startswith(f"job {job}: C"), done.stderr
    assert "waiting for 30 s" not in done.stderr, "it does not wait for a script that is lost"
    (record,) = [record for record in site.records(job) if record["node"] == other]
    assert (record["state"], record["note"]) == ("gone", "drained")
    again = site.do("exatrkx-hpc", "stop", job)
    assert again.returncode == 0 and again.stdout.startswith(f"job {job} has ended: "), again.stderr


def test_a_job_that_nobody_knows_is_one_line(site):
    for command in ("monitor", "status", "stop", "logs"):
        done = site.do("exatrkx-hpc", command, "999999")
        assert (done.returncode, done.stdout) == (4, "")
        (line,) = done.stderr.splitlines()
        assert "no job '999999'" in line


def test_a_job_of_another_user_is_told_as_such(site):
    """Its run directory is not among this user's; and beside a folder of that name Slurm tells whose it is."""
    theirs = site.cluster.run(["sbatch", "--parsable", "--wrap=sleep 600"], user="colleague").stdout.strip()
    try:
        done = site.do("exatrkx-hpc", "monitor", theirs)
        assert (done.returncode, f"no job '{theirs}'" in done.stderr) == (4, True)
        site.good("mkdir", "-p", f"exatrkx-hpc/{theirs}")
        told = site.told_by_status(theirs, "UNKNOWN", "it is a job of another user")
        assert told["ready"] == 0
        done = site.do("exatrkx-hpc", "stop", theirs)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 2  # what it does, and why that failed
    finally:
        site.cluster.run(["scancel", theirs], user="colleague")
