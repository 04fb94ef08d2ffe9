"""Further options of sbatch: those that would break the job are refused, with what to set instead."""

from __future__ import annotations

import pytest

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.config.directives import refusal
from exatrkx_hpc.config.resolve import resolve

REFUSED = [
    ("--array=0-3", "several jobs of one script", "run deploy once for each farm"),
    ("--hetjob", "several jobs of one script", "remove it"),
    ("--output=x", "finds the job and its errors by the log", "remove it"),
    ("--error=x", "finds the job and its errors by the log", "remove it"),
    ("--job-name=x", "by its name", "set name"),
    ("--comment=x", "word in its comment", "set job.comment"),
    ("--nodes=2", "planned for the number of nodes", "set job.nodes or -N"),
    ("--ntasks=2", "number of servers", "set server.servers_per_node"),
    ("--ntasks-per-gpu=1", "number of servers", "set server.servers_per_node"),
    ("--cpus-per-task=2", "the same number", "set job.cpus_per_task"),
    ("--gpus-per-node=4", "share its GPUs", "set job.gpus_per_node"),
    ("--time=1", "the drain before the limit", "set job.time or -t"),
    ("--signal=USR1@9", "drain on this signal", "set job.signal"),
    ("--requeue", "whether Slurm requeues", "set job.requeue"),
    ("--no-requeue", "whether Slurm requeues", "set job.requeue"),
    ("--no-kill=off", "always set", "remove it"),
    ("--export=NONE", "need the variables of its script", "set variables with server.environment"),
    ("--export=NIL", "need the variables of its script", "set variables with server.environment"),
    ("--export=PATH", "need the variables of its script", "set variables with server.environment"),
    ("--export-file=x", "need the variables of its script", "set variables with server.environment"),
    ("--uid=0", "another user", "remove it"),
    ("--container=x", "in the container", "set server.engine and server.image"),
    ("--wrap=true", "option for the command sbatch", "remove it"),
    ("--parsable", "option for the command sbatch", "remove it"),
    ("--test-only", "option for the command sbatch", "remove it"),
    ("--wait", "option for the command sbatch", "remove it"),
    ("--arr=0-3", "--array is refused", "run deploy once"),
    ("--outp=x", "--output is refused", "remove it"),
]
ACCEPTED = [
    "--qos=debug",
    "--reservation=x",
    "--gres=gpu:a100:4",
    "--gpus=4",
    "--mem=64G",
    "--mem-per-cpu=2G",
    "--open-mode=append",
    "--chdir=/x",
    "--export=ALL",
    "--export=ALL,A=1",
    "--clusters=a",
    "--exclusive",
    "--exclude=nid001",
    "--nodelist=nid001",
    "--nice=10",
    "--begin=now+60",
    "--hold",
    "--time-min=10",
    "--input=/dev/null",
    "--switches=1",
    "--wckey=x",
    "--image=docker:a",
    "--get-user-env",
]


@pytest.mark.parametrize(("option", "why", "instead"), REFUSED)
def test_what_would_break_the_job_is_refused(option: str, why: str, instead: str):
    said = refusal(option, "job")
    assert why in said and said.rpartition("; ")[2].startswith(instead)
    for key in ("job.extra_directives", "clients.extra_directives"):
        with pytest.raises(ConfigError, match=f"{key}: .*is refused: "):
            resolve(flags={key: [option]}, ambient=False)


@pytest.mark.parametrize("option", ACCEPTED)
def test_other_options_pass(option: str):
    for key in ("job.extra_directives", "clients.extra_directives"):
        resolve(flags={key: [option]}, ambient=False)


def test_the_workers_have_keys_of_their_own():
    assert refusal("--nodes=2", "clients").endswith("set clients.nodes or -N")
    assert refusal("--signal=X", "clients").endswith("; remove it"), "the workers' job has no such key"
