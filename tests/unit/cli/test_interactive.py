"""`deploy --interactive` without a Slurm: what it takes for an allocation, what it asks for, what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import complaint, exatrkx_hpc
from repositories import tiny_repository

from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.slurm.interactive import Allocation, allocation, salloc_argv


def test_what_says_that_a_shell_is_in_an_allocation():
    assert allocation({}) is None
    assert allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}) == Allocation(job="7", nodes=2)
    assert allocation({"SLURM_JOB_ID": "7"}) == Allocation(job="7", nodes=0)
    assert allocation({"SLURM_JOB_ID": "x"}) is None


def test_salloc_gets_what_the_batch_job_would_get():
    flags = {
        "run_root": "/x",
        "job.nodes": 2,
        "job.account": "a b",
        "job.qos": "interactive",
        "job.exclusive": True,
        "job.requeue": True,
        "job.extra_directives": ["--switches=1"],
        "server.engine": "shifter",
        "server.image": "docker:a:1",
    }
    words = salloc_argv(make_plan(resolve(Path(os.devnull), flags=flags).farm))
    assert words[0] == "salloc"
    assert {"--account=a b", "--qos=interactive", "--nodes=2", "--exclusive", "--no-kill", "--switches=1"} <= set(words)
    assert "--image=docker:a:1" in words, "shifter's plugin reads it from salloc as well"
    assert "--signal=TERM@60" in words, "there is no batch script for B: to name"
    assert not [word for word in words if word.startswith(("--output", "--requeue", "--no-requeue"))]


@pytest.mark.parametrize("flag", ["--json", "--wait=5"])
def test_flags_that_do_not_go_with_it(tmp_path, flag):
    done = exatrkx_hpc("deploy", "--interactive", flag, cwd=tmp_path)
    assert f"cannot be combined with {flag.partition('=')[0]}" in complaint(done, 2)


def test_without_slurm_there_is_nothing_to_be_in(tmp_path):
    done = exatrkx_hpc("deploy", "--interactive", "--site", "local", cwd=tmp_path)
    assert "site local does not use; run deploy and monitor" in complaint(done, 2)


@pytest.mark.parametrize(("inside", "program"), [({}, "salloc"), ({"SLURM_JOB_ID": "7"}, "srun")])
def test_without_slurms_commands(tmp_path, inside, program):
    tiny_repository(tmp_path / "exatrkx-hpc" / "model_repository")
    done = exatrkx_hpc("deploy", "--interactive", cwd=tmp_path, env={"PATH": "/nowhere", **inside})
    assert f"{program} is not on PATH" in complaint(done, 3)


def test_a_dry_run_prints_what_would_run(tmp_path):
    words = ["deploy", "--interactive", "--dry-run", "-A", "m1234"]
    done = exatrkx_hpc(*words, "-N", 3, cwd=tmp_path)
    assert done.stderr.startswith("at once: salloc --job-name=exatrkx --account=m1234 --nodes=3 ")
    assert done.stdout.startswith("#!/usr/bin/env bash\n")
    inside = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "5"}
    done = exatrkx_hpc(*words, cwd=tmp_path, env=inside)
    assert done.stderr.startswith("at once: bash ")
    assert "\n#   job.nodes = 5  <- allocation 7\n" in done.stdout
    assert "#SBATCH --nodes=5\n" in done.stdout
    assert not (tmp_path / "exatrkx-hpc").exists()
