"""The contract of the schedulers, held by each of them; Slurm is a fake on PATH, and a real cluster."""

from __future__ import annotations

import ast
import shutil
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import schedulers
from cluster import cluster, missing
from fakes.slurm import Cluster

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.schedulers import SCHEDULERS, abilities_of, scheduler_of, uses_own_triton


@pytest.fixture(params=list(SCHEDULERS))
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every scheduler; Slurm's commands are fakes with one job, which ends when it is cancelled."""
    (tmp_path / "fake").mkdir()
    slurm = Cluster(tmp_path / "fake")
    slurm.put_on_path(monkeypatch)
    slurm.knows(4242, log=f"{tmp_path}/job-4242.log")
    return str(request.param)


def test_a_job_is_submitted_told_of_and_ended(kind, tmp_path):
    schedulers.hold_life(*schedulers.made(kind, tmp_path), tmp_path)


def test_a_job_that_it_never_had(kind, tmp_path):
    schedulers.hold_stranger(schedulers.made(kind, tmp_path)[0])


def test_what_it_can_do_is_fixed(kind, tmp_path):
    scheduler = schedulers.made(kind, tmp_path)[0]
    schedulers.hold_abilities(kind, scheduler)
    for field in fields(scheduler.abilities):
        with pytest.raises(FrozenInstanceError):
            setattr(scheduler.abilities, field.name, True)


def test_a_script_that_runs_here_may_also_fail_or_end_at_once(tmp_path):
    made = schedulers.made("local", tmp_path)
    schedulers.hold_failure(*made, tmp_path)
    schedulers.hold_life(*made, tmp_path, drain=False)


@pytest.mark.slurm
def test_a_real_slurm_keeps_the_contract():
    if reason := missing():
        pytest.skip(reason)
    with cluster() as c:
        c.wait_idle()
        program = c.shared / "schedulers.py"
        shutil.copy(schedulers.__file__, program)
        program.chmod(0o644)
        done = c.run([sys.executable, str(program), "slurm", str(c.home() / "runs")], cwd=c.home(), timeout=600)
        assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr


def test_every_site_names_a_scheduler_that_there_is(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    for site in ("local", "generic", "perlmutter"):
        farm = resolve(flags={"site": site, "run_root": "/x"}, ambient=False).farm
        assert abilities_of(farm) == scheduler_of(farm).abilities


@pytest.mark.parametrize(
    ("flags", "own"),
    [
        ({}, True),
        ({"server.triton": "/opt/tritonserver"}, False),
        ({"server.engine": "podman", "server.image": "a:1"}, False),
        ({"cluster.scheduler": "slurm"}, False),
    ],
)
def test_the_embedded_triton_serves_where_nothing_else_is_named(flags, own):
    assert uses_own_triton(resolve(flags={"site": "local", **flags}, ambient=False).farm) is own


#: Where a scheduler's name may decide: its table, doctor's questions, and what a file may hold.
KNOW_NAMES = {"launch/schedulers.py", "doctor/__init__.py", "config/schema.py"}


def test_nobody_else_asks_a_schedulers_name():
    """They ask what it can do, so that another scheduler is one file and one line of the table."""
    package = package_parent() / "exatrkx_hpc"
    asking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "scheduler"
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "cluster"
    }
    assert asking <= KNOW_NAMES
