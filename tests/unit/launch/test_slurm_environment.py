"""What of this shell's variables Slurm's commands get."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.slurm import Cluster
from submissions import submission

from exatrkx_hpc.launch.slurm.environment import chosen_cluster, slurm_environment, unused_variables
from exatrkx_hpc.launch.slurm.scheduler import Slurm, ask
from exatrkx_hpc.launch.slurm.submit import submit

#: Each overrules an option or changes what is printed, by the manuals of sbatch, srun, salloc, squeue and the others.
OVERRULES = [
    "SBATCH_PARTITION",
    "SBATCH_TIMELIMIT",
    "SBATCH_ARRAY_INX",
    "SBATCH_ACCOUNT",
    "SBATCH_QOS",
    "SBATCH_OUTPUT",
    "SBATCH_EXPORT",
    "SBATCH_WAIT",
    "SBATCH_JOB_NAME",
    "SBATCH_REQUEUE",
    "SBATCH_SIGNAL",
    "SBATCH_GRES",
    "SBATCH_IGNORE_PBS",
    "SALLOC_PARTITION",
    "SRUN_CPUS_PER_TASK",
    "SRUN_EXPORT_ENV",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_NODE",
    "SLURM_EXACT",
    "SLURM_CPU_BIND",
    "SLURM_OVERLAP",
    "SLURM_KILL_BAD_EXIT",
    "SLURM_GPUS_PER_TASK",
    "SLURM_TIMELIMIT",
    "SLURM_HINT",
    "SLURM_UMASK",
    "SQUEUE_FORMAT",
    "SQUEUE_FORMAT2",
    "SQUEUE_STATES",
    "SQUEUE_USERS",
    "SQUEUE_ARRAY",
    "SCANCEL_INTERACTIVE",
    "SCANCEL_NAME",
    "SCANCEL_STATE",
    "SACCT_FORMAT",
    "SINFO_FORMAT",
    "SCONTROL_ALL",
    "SLURM_TIME_FORMAT",
    "SLURM_BITSTR_LEN",
    "SLURM_EXIT_ERROR",
]
#: What says where Slurm is, and what is none of its variables.
STAYS = [
    "SLURM_CONF",
    "SLURM_JWT",
    "MUNGE_SOCKET",
    "PATH",
    "HOME",
    "SLURMD_NODENAME",
    "CUDA_VISIBLE_DEVICES",
    "MY_SLURM_NOTE",
]
#: What tells srun where it is.
OF_THE_ALLOCATION = [
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_JOB_NODELIST",
    "SLURM_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_CLUSTER_NAME",
    "SLURM_WORKING_CLUSTER",
    "SLURM_SUBMIT_DIR",
    "SLURM_SPANK_SHIFTER_IMAGE",
]


def test_only_what_slurm_needs_stays():
    shell = dict.fromkeys([*OVERRULES, *STAYS, *OF_THE_ALLOCATION, "SLURM_CLUSTERS", "SBATCH_CLUSTERS"], "x")
    assert set(slurm_environment(shell)) == set(STAYS)
    assert set(slurm_environment(shell, clusters=True)) == {*STAYS, "SLURM_CLUSTERS", "SBATCH_CLUSTERS"}
    assert set(slurm_environment(shell, inside=True)) == {*STAYS, *OF_THE_ALLOCATION}


def test_what_is_left_out_is_named():
    shell = {"SBATCH_QOS": "debug", "SBATCH_ACCOUNT": "m1", "SBATCH_CLUSTERS": "a", "SRUN_DEBUG": "3", "HOME": "/"}
    assert str(unused_variables(shell, "sbatch")).startswith(
        "SBATCH_ACCOUNT, SBATCH_QOS of this shell are not used; set the options of the job in farm.toml"
    )
    assert str(unused_variables(shell, "srun")).startswith("SRUN_DEBUG of this shell is not used; ")
    assert unused_variables(shell, "salloc") is None


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Commands that note their variables, and a shell that is full of them."""
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    for name in (*OVERRULES, "SLURM_CONF", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "17")
    for program, answer in (("sbatch", "4242"), ("squeue", ""), ("scancel", ""), ("scontrol", ""), ("sacct", "")):
        made.instead(program, f"env >{tmp_path}/{program}.env; echo $* >{tmp_path}/{program}.argv; echo {answer}")
    return made


def got(cluster: Cluster, program: str) -> dict[str, str]:
    lines = (cluster.folder / f"{program}.env").read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_no_command_gets_what_overrules_the_farm(cluster: Cluster):
    submit(submission(), log="/x/job-%j.log")
    for program in ("sbatch", "squeue", "scancel", "scontrol", "sacct"):
        ask([program, "--me"])
        names = set(got(cluster, program))
        assert not (set(OVERRULES) - {"SLURM_TIME_FORMAT"}) & names and "SLURM_JOB_ID" not in names
        assert got(cluster, program)["SLURM_TIME_FORMAT"] == "%s" and got(cluster, program)["SLURM_CONF"] == "17"


def test_the_shell_chooses_a_cluster_only_where_the_farm_does_not(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SBATCH_CLUSTERS", "alpha")
    submit(submission(), log="/x/job-%j.log")
    assert got(cluster, "sbatch")["SBATCH_CLUSTERS"] == "alpha"
    submit(submission(), log="/x/job-%j.log", options=["--clusters=beta"])
    assert "SBATCH_CLUSTERS" not in got(cluster, "sbatch")


def test_a_job_is_asked_of_its_own_cluster_whatever_the_shell_says(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_CLUSTERS", "gamma")
    for cluster_of_job, words in (("", "--me"), ("alpha", "--clusters=alpha --me"), (None, "--clusters=gamma --me")):
        Slurm(cluster=cluster_of_job).info("4242")
        assert (cluster.folder / "squeue.argv").read_text().startswith(words)
        assert "SLURM_CLUSTERS" not in got(cluster, "squeue")


@pytest.mark.parametrize(
    ("variables", "options", "chosen"),
    [
        ({}, [], ""),
        ({"SLURM_CLUSTERS": "alpha"}, [], "alpha"),
        ({"SLURM_CLUSTERS": "alpha,beta"}, [], ""),
        ({"SLURM_CLUSTERS": "all"}, [], ""),
        ({"SLURM_CLUSTERS": "alpha", "SALLOC_CLUSTERS": "beta"}, [], "alpha"),
        ({"SLURM_CLUSTERS": "alpha"}, ["--clusters=beta"], "beta"),
        ({"SLURM_CLUSTERS": "alpha"}, ["--clusters=beta,gamma"], ""),
    ],
)
def test_the_cluster_that_is_chosen(variables: dict[str, str], options: list[str], chosen: str):
    assert chosen_cluster(variables, options) == chosen
