"""The walk of docs/perlmutter.md on a real Slurm that has Perlmutter's QOS, constraint, accounts, GPUs and CPUs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, User, cluster, missing
from cluster.config import Qos
from repositories import tiny_repository
from test_docs import blocks, commands
from waiting import until

pytestmark = [pytest.mark.slurm, pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx")]

PAGE = (Path(__file__).parent.parent / "docs" / "perlmutter.md").read_text()
LIKE_PERLMUTTER = ClusterConfig(
    nodes=2,
    cpus_per_node=128,
    qos=(
        Qos(name="regular", max_wall="48:00:00"),
        Qos(name="debug", max_wall="00:30:00"),
        Qos(name="interactive", max_wall="04:00:00"),
    ),
    users=(User(name="physicist", uid=20_001, account="m1234_g", qos=("regular", "debug", "interactive")),),
)
#: What this cluster has not: GPUs that compute, and shifter.
INSTEAD = {"SERVER_DEVICE": "cpu", "SERVER_ENGINE": "none", "SERVER_MODULES": "[]", "SERVER_DRAIN": "1"}


@pytest.fixture(scope="module")
def perlmutter() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(LIKE_PERLMUTTER) as c:
        c.wait_idle()
        tiny_repository(c.shared / "exatrkx-hpc" / "model_repository")
        toml = next(block.text for block in blocks(PAGE) if block.language == "toml")
        (c.home() / "farm.toml").write_text(toml)
        user = c.config.user("physicist")
        for path in [c.shared / "exatrkx-hpc", *(c.shared / "exatrkx-hpc").rglob("*")]:
            path.chmod(0o777)
        assert c.run(["chown", "-R", str(user.uid), str(c.shared / "exatrkx-hpc")], user="root").returncode == 0
        yield c


def section(title: str) -> list[str]:
    """The commands of this project below a heading of the page, in their order."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    page = next(part for part in text if part.startswith(f"{title}\n"))
    found = [command for block in blocks(page) for _, command in commands(block)]
    return [command for command in found if command.startswith("exatrkx-hpc ")]


def run(c: Cluster, command: str) -> str:
    """Run a command of the page as it stands and return what it printed."""
    environment = {f"EXATRKX_HPC_{name}": value for name, value in INSTEAD.items()}
    done = c.run(["bash", "-c", command], env=environment, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


def test_the_walk_from_setup_to_stop(perlmutter):
    once, each = section("Once"), section("Each time")
    assert [command.split()[1] for command in once] == ["setup", "doctor"]
    for command in once:
        run(perlmutter, command)
    verbs = [command.split()[1] for command in each]
    assert verbs == ["events", "deploy", "monitor", "status", "run-clients", "metrics", "stop"]
    said: dict[str, str] = {}
    monitor, job = None, ""
    for verb, command in zip(verbs, each, strict=True):
        here = command.replace("4242", job)
        if verb == "monitor":
            log = perlmutter.shared / "monitor.log"
            monitor = perlmutter.head.spawn(shlex.split(here), log=log, cwd=perlmutter.home())
            until(lambda log=log: "2 ready" in log.read_text(), what="two ready servers")
        else:
            said[verb] = run(perlmutter, here)
            job = said[verb].strip() if verb == "deploy" else job
    queue = perlmutter.run(["sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=Account,QOS,AllocNodes,Constraints"])
    assert queue.stdout.strip() == "m1234_g|debug|2|gpu"
    report = json.loads((perlmutter.home() / "results" / "report.json").read_text())
    assert (report["events"], report["done"], report["failed"], len(report["workers"])) == (20, 20, [], 8)
    assert len(list((perlmutter.home() / "results" / "labels").iterdir())) == 20
    assert said["stop"] == f"job {job}: COMPLETED\n"
    assert monitor is not None and monitor.wait(30) == 0, "it ends by itself"


def test_the_interactive_way(perlmutter):
    [command] = section("One terminal: the interactive QOS")
    log = perlmutter.shared / "interactive.log"
    environment = {f"EXATRKX_HPC_{name}": value for name, value in INSTEAD.items()}
    terminal = perlmutter.head.spawn(shlex.split(command), log=log, env=environment, cwd=perlmutter.home())
    until(lambda: "2 of 2 servers ready" in log.read_text(), what="two ready servers", deadline=60)
    queue = perlmutter.run(["squeue", "--noheader", "--format=%q %a %D %l %f"])
    assert queue.stdout.strip() == "interactive m1234_g 2 1:00:00 gpu"
    run(perlmutter, "exatrkx-hpc stop")
    assert terminal.wait(30) == 0, log.read_text()
    until(lambda: not perlmutter.run(["squeue", "--noheader"]).stdout, what="an empty queue")


def test_inside_an_allocation_farm_and_clients_share_a_shell(perlmutter):
    words = section("The monitor: login node, or inside the job")
    lines = [*words[:1], "until grep -q 'servers ready' farm.log; do sleep 0.2; done", *words[1:], "wait"]
    options = "-N 2 -C gpu -q interactive -t 60 -A m1234_g --gpus-per-node 4"
    assert f"salloc {options}`" in PAGE
    script = "rm -rf results; " + "\n".join(line.replace("-n 32", "-n 2") for line in lines)
    run(perlmutter, f"salloc --quiet {options} --ntasks-per-node=1 -c 128 bash -ec {shlex.quote(script)}")
    report = json.loads((perlmutter.home() / "results" / "report.json").read_text())
    assert (report["done"], report["failed"]) == (20, [])
