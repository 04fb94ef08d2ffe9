"""`deploy --interactive` on a real Slurm, as an ordinary user: inside salloc and by itself, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Entered, cluster, missing
from command import complaint
from local_farms import FAKE_TRITON
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.tracking.simulation.synthetic import write_events

FARM = """\
run_root = "{shared}/runs"
[job]
account = "m1234"
partition = "gpu"
gpus_per_node = 4
time = "00:10:00"
[server]
device = "cpu"
triton = "{triton}"
model_repository = "{shared}/models"
drain = 1
exit_timeout = 5
[balancer]
host = "127.0.0.1"
[monitor]
prometheus = false
trial = false
"""


class Terminal:
    """A terminal of the user on the head in which something runs."""

    def __init__(self, slurm: Cluster, log: Path, program: Entered) -> None:
        self.slurm, self.log, self.program = slurm, log, program

    @property
    def text(self) -> str:
        return self.log.read_text()

    def says(self, words: str, *, deadline: float = 60) -> None:
        until(lambda: words in self.text, what=f"{words!r} in:\n{self.text}", deadline=deadline)

    def press_ctrl_c(self) -> None:
        """What a terminal does to the program in its foreground."""
        pids = self.slurm.run(["pgrep", "--newest", "-f", "deploy --interactive"]).stdout.split()
        assert self.slurm.run(["kill", "-INT", *pids]).returncode == 0

    def job(self) -> str:
        self.says(", run directory")
        return re.findall(r" job (\d+), run directory", self.text, re.MULTILINE)[-1]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster with a farm.toml of fakes in the user's home, and one of a real server in `real/`."""
    if reason := missing():
        pytest.skip(reason)
    with cluster() as c:
        c.wait_idle()
        tiny_repository(c.shared / "models")
        (c.home() / "real").mkdir()
        for file, triton in (("", str(FAKE_TRITON)), ("real", "tritonserver")):
            (c.home() / file / "farm.toml").write_text(FARM.format(shared=c.shared, triton=triton))
        write_events(c.home() / "real" / "events", events=4, tracks=20, seed=8)
        user = c.config.user("physicist")
        for path in (c.home(), *c.home().rglob("*")):
            shutil.chown(path, user.uid, user.uid)
        yield c


@pytest.fixture
def terminal(slurm, tmp_path, nginx):
    """Open terminals; each is closed at the end, and then nothing may be left."""
    opened: list[Terminal] = []

    def open_one(command: str, *, cwd: str = "") -> Terminal:
        log = tmp_path / f"terminal-{len(opened)}.log"
        program = slurm.head.spawn(["bash", "-c", command], log=log, cwd=slurm.home() / cwd)
        opened.append(Terminal(slurm, log, program))
        return opened[-1]

    yield open_one
    good(slurm.run(["scancel", "--me"]))
    for one in opened:
        one.program.stop(grace=0)
    until(lambda: not good(slurm.run(["squeue", "--noheader"])), what="an empty queue", deadline=60)
    until(lambda: left(slurm) == "", what=f"the end of {left(slurm)}")


def left(slurm: Cluster) -> str:
    """What the user still runs on the head and on the nodes, and shared memory of servers."""
    hosts = (slurm.head, *slurm.nodes)
    processes = [host.run(["pgrep", "-u", "physicist", "-a"], user="root").stdout for host in hosts]
    return "".join([*processes, *(node.run(["ls", "/dev/shm"], user="root").stdout for node in slurm.nodes)])


def good(done: Completed) -> str:
    assert done.returncode == 0, done.complaint
    return done.stdout.strip()


def state(slurm: Cluster, job: str) -> str:
    return good(slurm.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]))


def status(slurm: Cluster, job: str) -> dict:
    return json.loads(good(slurm.run(["exatrkx-hpc", "status", job, "--json"])))[0]


def in_allocation(command: str, nodes: int) -> str:
    """A shell in an allocation, which runs the command and after it shows that the allocation is alive."""
    inside = f"{command}; echo ended with $?; srun hostname; echo step ended with $?; sleep 600"
    return f"exec salloc -A m1234 -p gpu -N {nodes} --gpus-per-node=4 bash -c {shlex.quote(inside)}"


def test_inside_an_allocation_ctrl_c_drains_and_the_allocation_goes_on(slurm, terminal):
    run = "exatrkx-hpc deploy --interactive"
    shell = terminal(in_allocation(f"{run} -N 3; {run}; {run} -N 1", 2))
    shell.says("has 2 nodes, but the farm needs 3; request fewer nodes with -N")
    shell.says("2 of 2 servers ready; run in another terminal: exatrkx-hpc run-clients --run-root")
    job = shell.job()
    assert (slurm.shared / "runs" / job / "server.sh").exists()
    now = status(slurm, job)
    assert (now["state"], now["ready"], len(now["nodes"])) == ("RUNNING", 2, 2)
    again = f"SLURM_JOB_ID={job} SLURM_JOB_NUM_NODES=2 {run}"
    assert f"job {job} already runs a farm" in complaint(slurm.run(["bash", "-c", again]), 4)
    shell.press_ctrl_c()
    shell.says("the servers of job")
    shell.says(f"the farm of job {job} has ended, its allocation is kept")
    assert "nid001-0: draining" in shell.text, "they leave the endpoint before it ends"
    # A second farm in the same allocation, which is smaller; nothing of the first is taken for its own.
    shell.says("1 of 1 servers ready")
    now = status(slurm, job)
    assert (now["state"], [server["state"] for server in now["servers"]]) == ("RUNNING", ["ready"])
    assert good(slurm.run(["exatrkx-hpc", "stop", job])) == f"job {job}: COMPLETED"
    shell.says("ended with 0\n")
    shell.says("step ended with 0\n")
    assert state(slurm, job) == "RUNNING"
    assert status(slurm, job)["state"] == "COMPLETED", "the farm, of which its allocation says nothing"
    assert not (slurm.shared / "runs" / job / "endpoint.json").exists()


@pytest.mark.triton
def test_by_itself_it_gets_an_allocation_and_gives_it_back_when_ctrl_c_comes_twice(slurm, terminal, triton):
    run = "exatrkx-hpc deploy --interactive -N 2"
    shell = terminal(f"EXATRKX_HPC_SERVER_DRAIN=300 {run}; echo ended with $?", cwd="real")
    shell.says("2 of 2 servers ready", deadline=120)
    job = shell.job()
    words = ["exatrkx-hpc", "run-clients", "-n", "2", "-j", "2", "--json", "-q"]
    report = json.loads(good(slurm.run(words, cwd=slurm.home() / "real", timeout=120)))
    assert (report["done"], report["failed"]) == (4, [])
    shell.press_ctrl_c()
    shell.says("nid001-0: draining")
    shell.press_ctrl_c()
    shell.says("stopping them at once")
    shell.says("ended with 0\n")
    until(lambda: state(slurm, job) == "COMPLETED", what="the end of the allocation")
    until(lambda: left(slurm) == "", what="the end of all that it started")


def test_ctrl_c_while_the_allocation_is_pending_takes_it_back(slurm, terminal):
    hog = good(slurm.run(["sbatch", "--parsable", "-A", "m1234", "-N3", "--exclusive", "--wrap", "sleep 600"]))
    shell = terminal("exatrkx-hpc deploy --interactive; echo ended with $?")
    shell.says("job: PENDING")
    job = shell.job()
    assert status(slurm, job)["state"] == "PENDING"
    shell.press_ctrl_c()
    shell.says("ended with 0\n")
    assert state(slurm, job) == "CANCELLED"
    good(slurm.run(["scancel", hog]))


def test_a_farm_whose_servers_give_up_fails_and_gives_the_allocation_back(slurm, terminal):
    variables = "FAKE_TRITON=exit:3 EXATRKX_HPC_SERVER_MAX_RESTARTS=0"
    shell = terminal(f"{variables} exatrkx-hpc deploy --interactive; echo ended with $?")
    shell.says("ended with 4\n")
    job = shell.job()
    assert f"the farm of job {job} is FAILED" in shell.text
    until(lambda: state(slurm, job) == "FAILED", what="the end of the allocation")


def test_what_salloc_refuses_is_one_line(slurm):
    done = slurm.run(["exatrkx-hpc", "deploy", "--interactive", "--qos", "nonsense"])
    assert "salloc was refused: Invalid qos specification; check job.qos" in complaint(done, 4)
    assert good(slurm.run(["squeue", "--noheader"])) == ""


def test_a_closed_terminal_ends_the_farm(slurm, terminal):
    shell = terminal("exec exatrkx-hpc deploy --interactive")
    shell.says("1 of 1 servers ready")
    job = shell.job()
    shell.program.send(signal.SIGHUP)
    until(lambda: shell.program.returncode() is not None, what=f"its end: {shell.text}")
    until(lambda: state(slurm, job) == "COMPLETED", what="the end of the allocation")
    with contextlib.suppress(FileNotFoundError):
        assert (slurm.shared / "runs" / job / "endpoint.json").read_text() == ""


def test_after_a_kill_of_deploy_a_monitor_takes_over_and_stop_ends_all(slurm, terminal):
    shell = terminal("exec exatrkx-hpc deploy --interactive")
    shell.says("1 of 1 servers ready")
    job = shell.job()
    shell.program.send(signal.SIGKILL)
    until(lambda: shell.program.returncode() is not None, what="its end")
    assert status(slurm, job)["ready"] == 1, "the servers go on"
    second = terminal(f"exec exatrkx-hpc monitor {job}")
    second.says("1 ready")
    assert good(slurm.run(["exatrkx-hpc", "stop", job])) == f"job {job}: COMPLETED"
    until(lambda: second.program.returncode() == 0, what=f"the end of {second.text}")
