"""The script of a shifter farm, run by the embedded scheduler with a fake shifter as strict as the real one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from paths import FAKES
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.process import kill_session, run, spawn
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.launch.embedded.triton import embedded_triton
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.render import render_server
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.work.map.endpoint import Endpoint

pytestmark = pytest.mark.slow


SHIFTER = FAKES / "shifter"
IMAGE = "docker:nvcr.io/nvidia/tritonserver:25.08-py3"


@pytest.fixture
def on_path(tmp_path, monkeypatch) -> None:
    """The fake shifter is first on PATH, and nothing of its variables is set, as in a shell's own allocation."""
    for name in [name for name in os.environ if "SHIFTER" in name]:
        monkeypatch.delenv(name)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "shifter").symlink_to(SHIFTER)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def shifter_farm(run_root: Path, **more: object) -> Farm:
    triton = embedded_triton(run_root / "triton")
    values = {
        "site": "local",
        "run_root": str(run_root),
        "cluster.local_address": "127.0.89.1",
        "job.nodes": 1,
        "server.engine": "shifter",
        "server.image": IMAGE,
        "server.modules": ["gpu"],
        "server.triton": str(triton.server),
        "server.extra_arguments": [
            f"--backend-directory={triton.backend_directory}",
            f"--cache-directory={triton.cache_directory}",
        ],
        "server.environment": {k: v for k, v in triton.environment.items() if k != "PYTHONPATH"},
        "server.drain": 0,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
        "monitor.trial": False,
    }
    return resolve(flags={**values, **more}).farm


def idle_farm(tmp_path: Path, **more: object) -> Farm:
    """A farm of a server that loads nothing and answers at once."""
    tiny_repository(tmp_path / "models")
    values = {
        "site": "local",
        "run_root": str(tmp_path / "run"),
        "cluster.local_address": "127.0.89.2",
        "job.nodes": 1,
        "server.engine": "shifter",
        "server.image": IMAGE,
        "server.modules": ["gpu"],
        "server.triton": str(FAKES / "fake_tritonserver"),
        "server.model_repository": str(tmp_path / "models"),
        "server.drain": 0,
    }
    return resolve(flags={**values, **more}).farm


@pytest.mark.triton
@pytest.mark.usefixtures("triton", "nginx", "on_path")
def test_a_farm_in_shifter_answers_although_no_plugin_has_said_its_image(tmp_path):
    what = shifter_farm(tmp_path / "run")
    assert dict(make_plan(what).directives)["module"] == "gpu"
    with farm.running(what, wait=120) as (job, watch), Endpoint(watch.endpoint, patience=60) as endpoint:
        assert endpoint.find_tracks(np.full((2, 3), 0.1, dtype=np.float32)).shape == (2,)
        assert job.farm.server.engine == "shifter"


def started(what: Farm, log: Path) -> str:
    """Deploy the farm, and return the image, the modules and the volumes that its shifter was started with."""
    job = farm.deploy(what)
    try:
        return until(lambda: log.exists() and log.read_text().strip(), what="a container")
    finally:
        farm.stop(job, drain=False)


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize("name", [IMAGE, IMAGE.removeprefix("docker:"), IMAGE.replace("docker:", "docker://")])
def test_image_modules_and_volumes_reach_shifter_in_a_shells_own_allocation(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FAKE_SHIFTER_LOG", str(tmp_path / "log"))
    mount = f"{tmp_path}:/models"
    what = idle_farm(tmp_path, **{"server.image": name, "server.modules": ["gpu", "mpich"], "server.mounts": [mount]})
    assert started(what, tmp_path / "log") == f"{IMAGE}|gpu,mpich|{mount}:ro"


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize("foreground", ["1", ""])
@pytest.mark.parametrize("prefix", ["", "SLURM_SPANK_"])
def test_the_image_of_the_allocation_counts_in_a_batch_job_alone(tmp_path, monkeypatch, prefix, foreground):
    """There Slurm's plugin has put it, after asking the gateway once; a shell's may have been for something else."""
    monkeypatch.setenv("FAKE_SHIFTER_LOG", str(tmp_path / "log"))
    monkeypatch.setenv(f"{prefix}SHIFTER_IMAGETYPE", "id")
    monkeypatch.setenv(f"{prefix}SHIFTER_IMAGE", "7f1a3c9f0e5d")
    monkeypatch.setenv("EXATRKX_FOREGROUND", foreground)
    wanted = IMAGE if foreground else "id:7f1a3c9f0e5d"
    assert started(idle_farm(tmp_path), tmp_path / "log").split("|")[0] == wanted


@pytest.mark.usefixtures("on_path")
def test_a_server_that_is_told_to_end_while_shifter_sets_up_ends_all_the_same(tmp_path, monkeypatch):
    """shifter ignores SIGTERM meanwhile; said once, the word would be lost until exit_timeout is over."""
    monkeypatch.setenv("FAKE_SHIFTER_SETUP", "3")
    job = farm.deploy(idle_farm(tmp_path, **{"server.exit_timeout": 600}))
    until(lambda: [one for one in read_records(job.run_dir) if one.state == "starting"], what="a start")
    try:
        job.run_dir.stop.write_text("drain\nrequest\n")
        until(lambda: job.scheduler.info(job.id).state.over, what="its end", deadline=60)
    finally:
        kill_session(json.loads(job.run_dir.embedded_job.read_text())["session"])
    assert [(one.state, one.note) for one in read_records(job.run_dir)] == [("gone", "drained")]


@pytest.fixture
def another_user(tmp_path: Path) -> Iterator[Path]:
    """A folder of a user who is not root, with a program that is root's at first; what the user runs is ended."""
    if os.getuid() != 0:
        pytest.skip("a program of root's needs root")
    folder = tmp_path / "another"
    folder.mkdir()
    done = run(["cc", "-O1", "-o", str(folder / "root_at_first"), str(FAKES / "root_at_first.c")])
    assert done.returncode == 0, done.complaint
    for path in (folder, folder / "root_at_first"):
        os.chown(path, 0, ANOTHER)
    (folder / "root_at_first").chmod(0o4750)  # nobody else may run it
    folder.chmod(0o770)
    for parent in folder.parents[:-1]:
        if not parent.stat().st_mode & 0o001 and parent.is_relative_to(tmp_path.parents[2]):
            parent.chmod(parent.stat().st_mode | 0o011)
    yield folder
    for process in theirs():
        with contextlib.suppress(psutil.Error):
            process.kill()


#: A user of no name.
ANOTHER = 54_321


def theirs() -> list[psutil.Process]:
    """The living processes of the other user, and those that are root's at first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = "root_at_first" in " ".join(process.cmdline())
            if (ours or process.uids().real == ANOTHER) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_process_that_is_roots_at_first_is_not_taken_for_ended(another_user, tmp_path):
    """kill -0 of it fails. A script that believes this says that the server is gone, and leaves it behind."""
    for name in ("fake_tritonserver",):
        shutil.copy(FAKES / name, another_user)
    start = another_user / "start"
    start.write_text(
        f'#!/bin/bash\nexec {another_user}/root_at_first 1500 /usr/bin/python3 {another_user}/fake_tritonserver "$@"\n'
    )
    start.chmod(0o755)
    values = {"run_root": str(another_user), "server.triton": str(start), "server.drain": 0, "server.exit_timeout": 600}
    script = another_user / "server.sh"
    script.write_text(render_server(make_plan(resolve(flags={"site": "local", **values}).farm)))
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "127.0.89.3"}
    become = ["setpriv", f"--reuid={ANOTHER}", f"--regid={ANOTHER}", "--clear-groups"]
    run_dir = another_user / "7"
    log = tmp_path / "log"
    child = spawn([*become, "bash", str(script), str(run_dir)], log=log, env=environment, cwd=another_user)
    try:
        until(lambda: [one for one in read_records(RunDir(run_dir)) if one.state == "starting"], what=f"a start, {log}")
        until(lambda: any(process.uids().real == 0 for process in theirs()), what="a process of root's")
        child.send(signal.SIGTERM)
        until(lambda: child.returncode() is not None, what="the end of the script", deadline=60)
        assert [(one.state, one.note) for one in read_records(RunDir(run_dir))] == [("gone", "drained")]
        assert not theirs()
    finally:
        child.stop(grace=0)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--shm-size=1g"], "unrecognized option '--shm-size=1g'"),
        (["--net", "host"], "unrecognized option '--net'"),
        (["-p", "8000:8000"], "unrecognized option '-p'"),
        (["--rm"], "unrecognized option '--rm'"),
        (["--gpu"], "unrecognized option '--gpu'"),
        (["--volume=/usr:/etc/b"], "Invalid Volume Map: /usr:/etc/b"),
        (["--volume=/usr:/opt"], "Invalid Volume Map"),
        (["--volume=/usr:/b:rw"], "Invalid mount flags"),
        (["--volume=/usr:/not/in/the/image"], "FAILED to setup user-requested mounts"),
        (["--volume=/not/here:/b"], "FAILED to setup user-requested mounts"),
        (["--volume=/etc/passwd:/b"], "FAILED to setup user-requested mounts"),
        (["--env=A"], "cannot parse"),
        (["--env=A="], "cannot parse"),
        (["--module=no-such"], "Invalid shifter module selection: no-such"),
        (["--image=docker://ubuntu:22.04"], "FAILED to lookup docker image //ubuntu:22.04"),
    ],
)
def test_the_fake_refuses_what_shifter_refuses(words, complaint):
    done = run([str(SHIFTER), f"--image={IMAGE}", *words, "true"])
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_fake_runs_the_command_with_its_variables():
    volumes = "--volume=/usr:/b:ro;/usr:/opt/new;/usr:/var/tmp"
    done = run([str(SHIFTER), "-i", IMAGE, "--env=A=b c,;$", volumes, "printenv", "A"])
    assert (done.returncode, done.stdout) == (0, "b c,;$\n")
    assert run([str(SHIFTER), "true"], env={"PATH": os.environ["PATH"]}).returncode == 1  # no image


def test_the_fake_hands_on_what_the_real_one_hands_on():
    """docs/reference/engines.md says so: a setuid program gets no LD_*, TMPDIR and GLIBC_TUNABLES."""
    lost = {"LD_LIBRARY_PATH": "/x", "TMPDIR": "/x", "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    kept = {"CUDA_VISIBLE_DEVICES": "2", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    done = run([str(SHIFTER), f"--image={IMAGE}", "--env=LD_PRELOAD=", "env"], env={**lost, **kept})
    assert done.returncode == 1
    done = run([str(SHIFTER), f"--image={IMAGE}", "--env=LD_BIND_NOW=1", "env"], env={**lost, **kept})
    arrived = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert kept.items() <= arrived.items()
    assert arrived["LD_BIND_NOW"] == "1", "what is said with --env arrives"
    assert not lost.keys() & arrived.keys()
