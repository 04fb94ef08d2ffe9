"""Slurm's commands: what is asked, and how real answers are read. The commands themselves are fakes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from exatrkx_hpc.errors import LaunchError, MissingComponent
from exatrkx_hpc.launch.plan import FarmPlan, make_plan
from exatrkx_hpc.launch.scheduler import JobState
from exatrkx_hpc.launch.slurm import (
    Slurm,
    parse_accounting,
    parse_job_id,
    parse_states,
    sacct_argv,
    sbatch_argv,
    scancel_argv,
    squeue_argv,
)
from exatrkx_hpc.resolution import resolve

FAKES = Path(__file__).parent / "fakes" / "fake_slurm"

SQUEUE = """\
4242 RUNNING
4243 PENDING
4244_7 COMPLETING
4245 CONFIGURING
4246 TIMEOUT
4247 SPECIAL_EXIT
"""
SACCT = """\
4242|COMPLETED
4243|CANCELLED by 1000
4244|CANCELLED+
4245|NODE_FAIL
4246|OUT_OF_MEMORY
4247|BOOT_FAIL
4248|SOMETHING_NEW
4249|
"""


def test_the_words_that_ask():
    assert sbatch_argv(Path("/a b/farm.sbatch")) == ["sbatch", "--parsable", "/a b/farm.sbatch"]
    assert "--me" in squeue_argv() and not any(word.startswith("--jobs") for word in squeue_argv())
    assert "--jobs=42" in sacct_argv("42") and "--allocations" in sacct_argv("42")
    assert scancel_argv("42", drain=True) == ["scancel", "42"]
    assert scancel_argv("42", drain=False) == ["scancel", "--signal=USR1", "42"]


@pytest.mark.parametrize(("output", "job"), [("4242\n", "4242"), ("4242;perlmutter\n", "4242"), ("4242", "4242")])
def test_a_job_id_comes_alone_or_with_its_cluster(output: str, job: str):
    assert parse_job_id(output) == job


@pytest.mark.parametrize("output", ["", "\n", "Submitted batch job 4242\n", "4242 4243\n", "perlmutter;4242\n"])
def test_what_is_no_job_id_is_refused_in_one_line(output: str):
    with pytest.raises(LaunchError, match="where a job id was expected") as caught:
        parse_job_id(output)
    assert "\n" not in str(caught.value)


def test_the_queue_is_read_whole():
    assert parse_states(SQUEUE) == {
        "4242": JobState.RUNNING,
        "4243": JobState.PENDING,
        "4244_7": JobState.COMPLETING,
        "4245": JobState.PENDING,
        "4246": JobState.TIMEOUT,
        "4247": JobState.UNKNOWN,
    }
    assert parse_states("") == parse_states("\n") == {}


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ("4242", JobState.COMPLETED),
        ("4243", JobState.CANCELLED),
        ("4244", JobState.CANCELLED),
        ("4245", JobState.NODE_FAIL),
        ("4246", JobState.OUT_OF_MEMORY),
        ("4247", JobState.NODE_FAIL),
        ("4248", JobState.UNKNOWN),
        ("4249", JobState.UNKNOWN),
        ("424", JobState.UNKNOWN),
    ],
)
def test_the_accounting_is_read_for_one_job(job: str, state: JobState):
    assert parse_accounting(SACCT, job) is state


def test_unknown_is_not_over():
    assert not JobState.UNKNOWN.over
    assert {state for state in JobState if not state.over} == {
        JobState.PENDING,
        JobState.RUNNING,
        JobState.COMPLETING,
        JobState.UNKNOWN,
    }


class Cluster:
    """The fakes of Slurm first on PATH: set what they answer, and read how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def says(self, name: str, text: str) -> None:
        (self.folder / f"{name}.out").write_text(text)

    def refuses(self, name: str, text: str) -> None:
        (self.folder / f"{name}.err").write_text(text)

    def calls(self) -> list[list[str]]:
        return [line.split("\0")[:-1] for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("PATH", f"{FAKES}{os.pathsep}{os.environ['PATH']}")
    return Cluster(tmp_path)


@pytest.fixture
def plan() -> FarmPlan:
    return make_plan(resolve(flags={"run_root": "/x"}).farm)


def test_submit_hands_over_the_script_and_returns_the_id(cluster: Cluster, plan: FarmPlan):
    cluster.says("sbatch", "4242;perlmutter\n")
    assert Slurm().submit(Path("/a'; echo foo/farm.sbatch"), plan) == "4242"
    assert cluster.calls() == [["sbatch", "--parsable", "/a'; echo foo/farm.sbatch"]]


def test_a_refused_script_is_one_line_with_slurms_reason_and_what_to_do(cluster: Cluster, plan: FarmPlan):
    cluster.refuses(
        "sbatch",
        "sbatch: error: Job request does not match any supported policy.\n"
        "sbatch: error: Batch job submission failed: Unspecified error\n",
    )
    with pytest.raises(LaunchError) as caught:
        Slurm().submit(Path("/x/farm.sbatch"), plan)
    message = str(caught.value)
    assert message.startswith("sbatch refused /x/farm.sbatch (exit 1): sbatch: error: Job request does not match")
    assert "Unspecified error. Check [job] in farm.toml" in message
    assert "\n" not in message


def test_an_sbatch_that_prints_something_else_is_an_error(cluster: Cluster, plan: FarmPlan):
    cluster.says("sbatch", "Submitted batch job 4242\n")
    with pytest.raises(LaunchError, match="where a job id was expected"):
        Slurm().submit(Path("/x/farm.sbatch"), plan)


def test_without_slurm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: FarmPlan):
    monkeypatch.setenv("PATH", str(tmp_path))
    if shutil.which("sbatch"):
        pytest.fail("an empty PATH has an sbatch")
    with pytest.raises(MissingComponent, match=r"sbatch is not on PATH; run this where .* cluster\.scheduler"):
        Slurm().submit(Path("/x/farm.sbatch"), plan)


def test_a_job_in_the_queue_is_not_asked_for_again(cluster: Cluster):
    assert Slurm().state("4242") is JobState.RUNNING
    assert [call[0] for call in cluster.calls()] == ["squeue"]


def test_a_job_that_left_the_queue_is_asked_from_the_accounting(cluster: Cluster):
    cluster.says("squeue", "4300 RUNNING\n")
    cluster.says("sacct", SACCT)
    assert Slurm().state("4243") is JobState.CANCELLED
    assert [call[0] for call in cluster.calls()] == ["squeue", "sacct"]
    assert "--jobs=4243" in cluster.calls()[1]


def test_a_queue_that_cannot_be_asked_is_not_an_empty_one(cluster: Cluster):
    cluster.refuses("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    cluster.says("sacct", "4242|RUNNING\n")
    assert Slurm().state("4242") is JobState.RUNNING


@pytest.mark.parametrize("accounting", ["", "4300|COMPLETED\n"])
def test_what_neither_knows_stays_unknown(cluster: Cluster, accounting: str):
    cluster.says("squeue", "")
    cluster.says("sacct", accounting)
    assert Slurm().state("4242") is JobState.UNKNOWN


def test_without_accounting_it_stays_unknown(cluster: Cluster):
    cluster.says("squeue", "")
    cluster.refuses("sacct", "Slurm accounting storage is disabled\n")
    assert Slurm().state("4242") is JobState.UNKNOWN


def test_cancel_drains_or_does_not(cluster: Cluster):
    Slurm().cancel("4242")
    Slurm().cancel("4242", drain=False)
    assert cluster.calls() == [["scancel", "4242"], ["scancel", "--signal=USR1", "4242"]]


def test_a_refused_cancel_is_one_line(cluster: Cluster):
    cluster.refuses("scancel", "scancel: error: Kill job error on job id 4242: Invalid job id specified\n")
    with pytest.raises(LaunchError, match=r"scancel refused job 4242 \(exit 1\): .* Invalid job id") as caught:
        Slurm().cancel("4242")
    assert "\n" not in str(caught.value)
