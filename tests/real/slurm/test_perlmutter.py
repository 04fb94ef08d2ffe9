"""The commands of the Perlmutter page on a real Slurm that has its QOS, constraints, accounts, GPUs and CPUs.

shifter, its image gateway and its plugin for Slurm are fakes that refuse what the real ones refuse.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator

import pytest
from cluster import Cluster, ClusterConfig, User, cluster, missing
from cluster.config import Qos
from pages import blocks, commands
from paths import FAKES, ROOT
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc.base.ports import user_port

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx")]

PAGE = (ROOT / "docs" / "guides" / "perlmutter.md").read_text()
QOS = ("regular", "debug", "interactive", "shared_interactive")
LIKE_PERLMUTTER = ClusterConfig(
    nodes=2,
    cpus_per_node=128,
    features=("gpu", "a100", "hbm80g", "cpu"),
    licenses="scratch:100",
    qos=(
        Qos(name="regular", max_wall="48:00:00"),
        Qos(name="debug", max_wall="00:30:00"),
        Qos(name="interactive", max_wall="04:00:00"),
        Qos(name="shared_interactive", max_wall="04:00:00"),
    ),
    users=(User(name="physicist", uid=20_001, account="m1234_g,m1234", qos=QOS),),
)
#: What this cluster has not: GPUs that compute.
INSTEAD = {"SERVER_DEVICE": "cpu", "SERVER_DRAIN": "1"}
IMAGE = "docker:nvcr.io/nvidia/tritonserver:25.08-py3"


@pytest.fixture(scope="module")
def perlmutter() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(LIKE_PERLMUTTER) as c:
        c.wait_idle()
        for program in (FAKES / "shifter", FAKES / "shifterimg", *(FAKES / "shifter_plugin").iterdir()):
            shutil.copy(program, c.base / "bin")
        runs = c.shared / "exatrkx-hpc"
        tiny_repository(runs / "model_repository")
        # Without PyPI; Triton has its packages here.
        (runs / "environment").mkdir()
        (c.shared / "registry").write_text(f"{IMAGE}\n")
        (c.shared / "gateway").touch()
        (c.shared / "gateway").chmod(0o666)
        for path in [runs, *runs.rglob("*")]:
            path.chmod(0o777)
        user = c.config.user("physicist")
        assert c.run(["chown", "-R", str(user.uid), str(runs)], user="root").returncode == 0
        yield c


def variables(c: Cluster, **more: str) -> dict[str, str]:
    """What the user's shell has: where the fakes look, and what this cluster has not."""
    fakes = {"FAKE_SHIFTERIMG": str(c.shared / "gateway"), "FAKE_REGISTRY": str(c.shared / "registry")}
    return {**fakes, **{f"EXATRKX_HPC_{name}": value for name, value in {**INSTEAD, **more}.items()}}


def section(title: str) -> list[str]:
    """The commands of this project below a heading of the page, in their order."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    page = next(part for part in text if part.startswith(f"{title}\n"))
    found = [command for block in blocks(page) for _, command in commands(block)]
    return [command for command in found if command.startswith("exatrkx-hpc ")]


def run(c: Cluster, command: str, **more: str) -> str:
    """Run a command of the page as it stands and return what it printed."""
    done = c.run(["bash", "-c", command], env=variables(c, **more), timeout=240)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


def test_the_walk_from_setup_to_stop(perlmutter):
    once, each = section("Set up once"), section("Run")
    assert [command.split()[1] for command in once] == ["init", "deploy", "setup", "doctor"]
    printed = [run(perlmutter, command) for command in once]
    assert {"#SBATCH --cpus-per-task=64", "#SBATCH --hint=nomultithread", f"#SBATCH --image={IMAGE}"} <= set(
        printed[1].splitlines()
    )
    assert IMAGE in (perlmutter.shared / "gateway").read_text(), "setup has pulled it"
    verbs = [command.split()[1] for command in each]
    assert verbs == ["events", "deploy", "monitor", "status", "run-clients", "metrics", "stop"]
    said: dict[str, str] = {}
    monitor, job = None, ""
    for verb, command in zip(verbs, each, strict=True):
        here = command.replace("4242", job)
        if verb == "monitor":
            log = perlmutter.shared / "monitor.log"
            monitor = perlmutter.head.spawn(
                shlex.split(here), log=log, env=variables(perlmutter), cwd=perlmutter.home()
            )
            until(lambda log=log: "2 ready" in log.read_text(), what="two ready servers", deadline=60)
        else:
            said[verb] = run(perlmutter, here)
            job = said[verb].strip() if verb == "deploy" else job
    queue = perlmutter.run(["sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=Account,QOS,AllocNodes,Constraints"])
    assert queue.stdout.strip() == "m1234_g|debug|2|gpu"
    endpoint = f":{user_port('grpc', perlmutter.config.user('physicist').uid)}"
    assert endpoint in said["status"], "a port of the user's own"
    report = json.loads((perlmutter.home() / "results" / "report.json").read_text())
    assert (report["events"], report["done"], report["failed"], len(report["workers"])) == (20, 20, [], 8)
    assert len(list((perlmutter.home() / "results" / "labels").iterdir())) == 20
    assert said["stop"] == f"job {job}: COMPLETED\n"
    assert monitor is not None and monitor.wait(30) == 0, "it ends by itself"


def test_the_interactive_way(perlmutter):
    [command] = section("Use the interactive QOS")
    log = perlmutter.shared / "interactive.log"
    home = perlmutter.home()
    terminal = perlmutter.head.spawn(shlex.split(command), log=log, env=variables(perlmutter), cwd=home)
    until(lambda: "2 of 2 servers ready" in log.read_text(), what="two ready servers", deadline=60)
    queue = perlmutter.run(["squeue", "--noheader", "--format=%q %a %D %l %f"])
    assert queue.stdout.strip() == "interactive m1234_g 2 1:00:00 gpu"
    run(perlmutter, "exatrkx-hpc stop")
    assert terminal.wait(30) == 0, log.read_text()
    until(lambda: not perlmutter.run(["squeue", "--noheader"]).stdout, what="an empty queue")


def test_inside_an_allocation_farm_and_clients_share_a_shell(perlmutter):
    """The allocation names no image, so that Slurm's plugin has told shifter nothing."""
    words = section("Run the monitor on a login node or inside the job")
    lines = [*words[:1], "until grep -q 'servers ready' farm.log; do sleep 0.2; done", *words[1:], "wait"]
    options = "-N 2 -C gpu -q interactive -t 60 -A m1234_g --gpus-per-node 4"
    assert f"salloc {options}`" in PAGE
    script = "rm -rf results; " + "\n".join(line.replace("-n 32", "-n 2") for line in lines)
    run(perlmutter, f"salloc --quiet {options} --ntasks-per-node=1 -c 128 bash -ec {shlex.quote(script)}")
    report = json.loads((perlmutter.home() / "results" / "report.json").read_text())
    assert (report["done"], report["failed"]) == (20, [])


def test_a_server_for_each_gpu_of_80_gb_and_workers_on_cpu_hours(perlmutter):
    """With the constraint, the licenses and the QOS of the page."""
    more = {
        "JOB_CONSTRAINT": "gpu&hbm80g",
        "JOB_LICENSES": "scratch",
        "SERVER_SERVERS_PER_NODE": "4",
        "SERVER_GPUS_PER_SERVER": "1",
    }
    assert all(f'"{value}"' in PAGE or f"= {value}\n" in PAGE for value in more.values())
    job = run(perlmutter, "exatrkx-hpc deploy --qos shared_interactive --wait 120", **more).strip()
    try:
        [found] = json.loads(run(perlmutter, f"exatrkx-hpc status {job} --json"))
        assert sorted(server["gpus"] for server in found["servers"]) == ["0", "1", "2", "3"]
        words = ["sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=Account,QOS,AllocCPUS,Constraints"]
        assert perlmutter.run(words).stdout.strip() == "m1234_g|shared_interactive|128|gpu&hbm80g"
        workers = run(perlmutter, "exatrkx-hpc run-clients --sbatch -n 2 -d events -o by-job --server nid001:8001")
        number = next(word for word in workers.split() if word.isdigit())
        words = ["squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%a %f"]
        assert perlmutter.run(words).stdout.strip() == "m1234 cpu"
        perlmutter.run(["scancel", number])
    finally:
        run(perlmutter, f"exatrkx-hpc stop {job}")
