"""Workers on several nodes of a real Slurm, as an ordinary user: cancelled, with a node crashed, and gone on with."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, cluster, missing
from cluster.config import HEAD_ADDRESS
from command import complaint
from paths import FAKES
from runs import make_events
from waiting import until

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.work.nodes.state import read_state

pytestmark = pytest.mark.slurm

FARM = """\
[job]
account = "m1234"
partition = "gpu"
[clients]
workers = 1
in_flight = 2
time = "00:10:00"
"""
EVENTS = 240


@dataclass(frozen=True)
class Site:
    """The cluster, and a stub of an endpoint that takes its time on the head."""

    cluster: Cluster
    server: str

    @property
    def home(self) -> Path:
        return self.cluster.home()

    def do(self, *words: object) -> Completed:
        return self.cluster.run([str(word) for word in words], cwd=self.home)

    def good(self, *words: object) -> str:
        done = self.do(*words)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def clients(self, *words: object) -> list[str]:
        return ["exatrkx-hpc", "run-clients", "-s", self.server, "-d", "events", *map(str, words)]

    def labels(self, out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.home / out / "labels").iterdir()}

    def until_labels(self, out: str, number: int) -> None:
        folder = self.home / out / "labels"
        until(lambda: folder.is_dir() and len(list(folder.iterdir())) >= number, what=f"{number} labels")

    def until_over(self, job: str, out: str) -> str:
        """Wait for the end of a job and return what it said."""
        until(lambda: self.do("squeue", "-h", "-j", job, "-t", "all", "-O", "State").stdout.strip() not in ALIVE,
              what=f"the end of job {job}", deadline=90)  # fmt: skip
        return (self.home / out / f"workers-{job}.log").read_text()


ALIVE = ("PENDING", "RUNNING", "COMPLETING")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(nodes=3, kill_wait=5)) as c:
        (c.home() / "farm.toml").write_text(FARM)
        make_events(c.home() / "events", [n % 7 for n in range(EVENTS)])
        for path in (c.home() / "farm.toml", c.home() / "events", *(c.home() / "events").iterdir()):
            shutil.chown(path, c.config.user("physicist").uid)
        with stub(c) as server:
            c.wait_idle()
            yield Site(c, server)


@contextmanager
def stub(c: Cluster) -> Iterator[str]:
    """Run the stub on the head for the block, and give its address."""
    log, program = c.home() / "stub.log", FAKES / "fake_triton.py"
    child = c.head.spawn([sys.executable, str(program), "--host", HEAD_ADDRESS, "--delay", "0.08"], log=log)
    try:
        until(lambda: log.read_text().endswith("\n"), what="the address of the stub")
        yield f"{HEAD_ADDRESS}:{log.read_text().strip()}"
    finally:
        child.stop(grace=2)


def rows(site: Site, out: str) -> dict[str, str]:
    """The state of each event in the ledgers of all shards; none is in two of them."""
    found: dict[str, str] = {}
    for path in (site.home / out / "shards").glob("*/ledger.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            part = dict(db.execute("SELECT name, state FROM events").fetchall())
        assert not part.keys() & found.keys()
        found |= part
    return found


def report(site: Site, out: str) -> dict:
    return json.loads((site.home / out / "report.json").read_text())


def test_an_allocation_of_a_shell_does_it_at_once(site: Site):
    words = ["salloc", "--quiet", "--no-kill", "-N", "2", "-A", "m1234", "-p", "gpu"]
    done = site.do(*words, *site.clients("--srun", "-j", "8", "-o", "undisturbed", "--json"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["events"], told["done"], told["not_tried"]) == (EVENTS, EVENTS, 0)
    assert set(told["nodes"]) == {"nid001", "nid002"} and min(told["nodes"].values()) > EVENTS / 4
    assert "2 nodes, 1 workers on each: nid[001-002]" in done.stderr
    assert len(site.labels("undisturbed")) == EVENTS


def test_a_time_limit_a_cancel_and_a_crashed_node_lose_nothing(site: Site):
    """Each of three jobs is ended in its middle, the third by the crash of a node, which the other makes good."""
    job = site.good(*site.clients("--sbatch", "-N", "2", "-o", "out"))
    done = 0
    # Before the time limit Slurm tells the batch script alone; a cancel tells all.
    for told in (["--batch", "--signal=TERM"], []):
        site.until_labels("out", done + EVENTS // 8)
        site.good("scancel", *told, job)
        said = site.until_over(job, "out")
        stopped = report(site, "out")
        assert stopped["stopped"] == "stopped by SIGTERM", said
        assert stopped["done_before"] == done < stopped["done"] == len(site.labels("out")) < EVENTS
        done = stopped["done"]
        job = site.good("sbatch", "--parsable", "out/workers.sbatch")

    node, shard = until(lambda: in_the_middle(site, "out", not_on="nid001"), what="a shard in its middle")
    site.cluster.node(node).crash()
    said = site.until_over(job, "out")
    assert re.search(rf"shards? .*{shard}.* lost because a node or a worker program ended; other nodes take over", said)
    after = report(site, "out")
    assert (after["events"], after["done"], after["failed"]) == (EVENTS, EVENTS, []), said
    assert after["done_before"] == done and after["stopped"] is None
    assert site.labels("out") == site.labels("undisturbed")
    assert rows(site, "out") == {f"evt_{number}": "done" for number in range(EVENTS)}
    page = (site.home / "out" / "report.html").read_text()
    assert f"{EVENTS} of {EVENTS}" in page and page.count("<td><bdi>stopped by SIGTERM</bdi></td>") == 2
    assert page.count("<td><bdi>finished</bdi></td>") == 1, "three jobs, whatever their shards did"


def in_the_middle(site: Site, out: str, *, not_on: str) -> tuple[str, int] | None:
    """Return a node, and the shard of which it has done some and has some left."""
    for shard in range(4):
        state = read_state(site.home / out, shard)
        if state and state.code is None and state.node != not_on and state.done + 5 < state.events and state.done > 5:
            return state.node, shard
    return None


def test_what_slurm_refuses_is_one_line(site: Site):
    done = site.do(*site.clients("--sbatch", "-A", "nobody", "-o", "refused"))
    assert "check clients.account; 'sacctmgr show assoc" in complaint(done, 4)
