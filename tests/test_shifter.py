"""The script of a shifter farm, run by the embedded scheduler with a fake shifter as strict as the real one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from exatrkx_hpc import farm
from exatrkx_hpc.config import Farm
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.triton import embedded_triton
from exatrkx_hpc.process import run
from exatrkx_hpc.resolution import resolve
from exatrkx_hpc.work.endpoint import Endpoint

SHIFTER = Path(__file__).parent / "fakes" / "shifter"
IMAGE = "docker:nvcr.io/nvidia/tritonserver:24.10-py3"


@pytest.fixture
def on_path(tmp_path, monkeypatch) -> None:
    """The fake shifter is first on PATH."""
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
    }
    return resolve(flags={**values, **more}).farm


@pytest.mark.triton
@pytest.mark.usefixtures("triton", "nginx", "on_path")
def test_a_farm_in_shifter_answers(tmp_path, monkeypatch):
    what = shifter_farm(tmp_path / "run")
    directives = dict(make_plan(what).directives)
    assert directives["module"] == "gpu"
    # What Slurm's plugin of shifter does with the options of the script.
    monkeypatch.setenv("SLURM_SPANK_SHIFTER_IMAGE", directives["image"])
    with farm.running(what, wait=120) as (job, watch), Endpoint(watch.endpoint, patience=60) as endpoint:
        assert endpoint.find_tracks(np.full((2, 3), 0.1, dtype=np.float32)).shape == (2,)
        assert job.farm.server.engine == "shifter"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--shm-size=1g"], "unrecognized option '--shm-size=1g'"),
        (["--net", "host"], "unrecognized option '--net'"),
        (["-p", "8000:8000"], "unrecognized option '-p'"),
        (["--rm"], "unrecognized option '--rm'"),
        (["--volume=/a:/etc/b"], "Invalid Volume Map: /a:/etc/b"),
        (["--volume=/a:/opt"], "Invalid Volume Map"),
        (["--volume=/a:/b:rw"], "Invalid mount flags"),
        (["--env=A"], "cannot parse"),
    ],
)
def test_the_fake_refuses_what_shifter_refuses(words, complaint):
    done = run([str(SHIFTER), f"--image={IMAGE}", *words, "true"])
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_fake_runs_the_command_with_its_variables():
    done = run([str(SHIFTER), "-i", IMAGE, "--env=A=b c", "--volume=/a:/b:ro;/c:/d", "printenv", "A"])
    assert (done.returncode, done.stdout) == (0, "b c\n")
    assert run([str(SHIFTER), "true"], env={"PATH": os.environ["PATH"]}).returncode == 1  # no image
