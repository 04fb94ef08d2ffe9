"""What `deploy` refuses on a real Slurm: one line that says the next step, an exit code, and nothing left of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterConfig, cluster, missing
from command import complaint
from paths import FAKES
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc.base.process import Completed

FARM = """\
run_root = "{shared}/runs"
[job]
account = "m1234"
partition = "gpu"
time = "00:10:00"
[server]
device = "cpu"
triton = "{base}/bin/fake"
model_repository = "{shared}/models"
"""
SHIFTER = {"SERVER_ENGINE": "shifter", "SERVER_IMAGE": "docker:a/b:1"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(ClusterConfig(nodes=1)) as c:
        c.wait_idle()
        shutil.copy(FAKES / "shifterimg", c.base / "bin")
        tiny_repository(c.shared / "models")
        (c.home() / "farm.toml").write_text(FARM.format(shared=c.shared, base=c.base))
        (c.shared / "runs").mkdir()
        shutil.chown(c.shared / "runs", c.config.user("physicist").uid)
        yield c


def deploy(c: Cluster, *words: str, **variables: str) -> Completed:
    """Run `deploy` on the head as the user, with these values of the configuration in the environment."""
    environment = {f"EXATRKX_HPC_{name}": value for name, value in variables.items()}
    no_images = {"FAKE_SHIFTERIMG": "/dev/null"}
    return c.run(["exatrkx-hpc", "deploy", *words], env=environment | no_images)


def nothing_left(c: Cluster) -> bool:
    """Whether there is no job, and no run directory."""
    return c.run(["squeue", "--noheader"]).stdout == "" and not list((c.shared / "runs").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("words", "variables", "code", "said"),
    [
        (["--qos", "nonsense"], {}, 4, "Invalid qos specification; check job.qos; 'sacctmgr show assoc"),
        (
            ["--account", "m5678"],
            {},
            4,
            "account or account/partition combination specified; check job.account",
        ),
        ([], {"JOB_PARTITION": "nowhere"}, 4, "Invalid partition name specified; check job.partition; 'sinfo"),
        ([], {"JOB_CONSTRAINT": "quantum"}, 4, "Invalid feature specification; check job.constraint; 'sinfo"),
        (
            ["--time", "13:00:00"],
            {},
            4,
            "time limit is invalid (missing or exceeds some limit); check job.time",
        ),
        (["-N", "9"], {}, 4, "Node count specification invalid; ask for fewer nodes"),
        ([], {"SERVER_MODEL_REPOSITORY": "/nowhere"}, 7, "/nowhere does not exist; make it with 'exatrkx-hpc models"),
        ([], {"SERVER_ENGINE": "podman-hpc"}, 2, "image: engine 'podman-hpc' needs one, such as"),
        (
            [],
            {"SERVER_ENGINE": "apptainer", "SERVER_IMAGE": "/no.sif"},
            4,
            "/no.sif does not exist; create it with 'apptainer pull /no.sif docker://",
        ),
        (
            [],
            SHIFTER,
            4,
            "the image gateway has no docker:a/b:1; pull it with 'exatrkx-hpc setup', or correct server.image",
        ),
        ([], {**SHIFTER, "SERVER_MOUNTS": '["/data:/etc/data"]'}, 4, "shifter refuses /etc/data as the target of a"),
        (
            [],
            {"RUN_ROOT": "/usr/farm"},
            4,
            "run_root /usr/farm cannot be made (Permission denied); choose a folder that",
        ),
        (["--run-root", "/tmp/farm"], {}, 4, "run_root /tmp/farm is on tmpfs, which the nodes do not share"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else "",
)
def test_a_refusal_is_one_line_with_the_next_step(slurm, words, variables, code, said):
    assert said in complaint(deploy(slurm, *words, **variables), code)
    assert nothing_left(slurm)


def test_no_sbatch_on_the_path(slurm):
    program = str(Path(sys.executable).parent / "exatrkx-hpc")
    done = slurm.run(["env", "PATH=/nowhere", program, "deploy"])
    assert "sbatch is not on PATH; run this on a machine with Slurm's commands" in complaint(done, 3)
    assert nothing_left(slurm)


@pytest.fixture(params=["absent", "another"])
def head_alone(request, slurm) -> Iterator[Path]:
    """A folder of the head that no node sees, be there nothing in its place or a folder of the node's own."""
    own, place = slurm.base / "of-the-head", Path("/srv")
    (own / "runs").mkdir(parents=True)
    shutil.chown(own / "runs", slurm.config.user("physicist").uid)
    assert slurm.head.run(["mount", "--bind", str(own), str(place)], user="root").returncode == 0
    node = slurm.nodes[0]
    if request.param == "another":
        make = f"mount -t tmpfs exatrkx-cluster {place} && mkdir -m 777 {place}/runs"
        assert node.run(["bash", "-c", make], user="root").returncode == 0
    yield place / "runs"
    if request.param == "another":
        [log] = node.run(["bash", "-c", f"cat {place}/runs/job-*.log"], user="root").stdout.splitlines()
        assert log.startswith(f"nid001 has no folder {place}/runs/python/"), "the job's own output says it"
        assert node.run(["umount", str(place)], user="root").returncode == 0
    assert slurm.head.run(["umount", str(place)], user="root").returncode == 0
    shutil.rmtree(own)


def test_a_run_root_that_the_nodes_do_not_see_is_told_when_the_job_has_failed(slurm, head_alone):
    why = f"nid001 wrote nothing to {head_alone}; set run_root to a folder that all nodes share"
    done = deploy(slurm, "--wait", "60", RUN_ROOT=str(head_alone))
    assert done.returncode == 5, done.complaint
    job = done.stdout.strip()
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"exatrkx-hpc: job {job} is FAILED before its servers were ready; ")
    assert why in last
    told = slurm.run(["exatrkx-hpc", "status", job, "--json", "--run-root", str(head_alone)])
    [one] = json.loads(told.stdout)
    assert one["state"] == "FAILED"
    assert why in one["reason"]
    watched = slurm.run(["exatrkx-hpc", "monitor", job, "--run-root", str(head_alone)])
    assert why in complaint(watched, 4)


def test_a_run_root_that_is_trusted_is_submitted(slurm):
    job = deploy(slurm, "--run-root", "/dev/shm/farm", "--trust-run-root").stdout.strip()
    assert job.isdigit()
    until(lambda: slurm.run(["squeue", "--noheader"]).stdout == "", what="its end")
    assert slurm.head.run(["rm", "-r", "/dev/shm/farm"]).returncode == 0
