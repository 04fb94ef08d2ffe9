"""What sbatch answers: which job there is, or none, or nobody knows. The commands themselves are fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.slurm import Cluster
from paths import FAKES
from submissions import submission

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.slurm.job import JobId, named_jobs, parse_facts, same_log
from exatrkx_hpc.launch.slurm.submit import check_argv, sbatch_argv, submit, would_start

LOG = "/x/job-%j.log"
BANNER = "-----------\n  Welcome to the Test3 Supercomputer\n--> Checking available allocation (m1234)...OK\n"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    yield made


@pytest.mark.parametrize(
    ("answer", "jobs"),
    [
        ("4242\n", ["4242"]),
        ("4242", ["4242"]),
        ("4242;alpha\n", ["4242;alpha"]),
        ("\n4242\n", ["4242"]),
        ("  4242 \r\n", ["4242"]),
        ("\x1b[32m4242\x1b[0m\r\n", ["4242"]),
        ("\x1b]0;a title\x07\x1b[1m4242;alpha\x1b[m\n", ["4242;alpha"]),
        ("No reservation for this job\nSubmitted batch job 4242\n", ["4242"]),
        ("Submitted batch job 4242 on cluster alpha-1.x\n", ["4242;alpha-1.x"]),
        ("sbatch: Submitted batch job 4242\n", ["4242"]),
        (BANNER + "4242\n", ["4242"]),
        ("4242\n" + BANNER, ["4242"]),
        (BANNER + "4242;alpha\nSubmitted batch job 4242\n", ["4242;alpha"]),
        ("Submitted batch job 4242\n4242;alpha\n", ["4242;alpha"]),
        ("12\n4242\n", ["12", "4242"]),
        ("12;alpha\n4242;beta\n", ["12;alpha", "4242;beta"]),
        (BANNER, []),
        ("", []),
        ("\n", []),
        ("0\n", []),
        ("042\n", []),
        ("4242_1\n", []),
        ("4242_[0-3]\n", []),
        ("4242+0\n", []),
        ("4242 4243\n", []),
        ("alpha;4242\n", []),
        ("4242;\n", []),
        ("4242; alpha\n", []),
        ("-4242\n", []),
        ("4242.batch\n", []),
        ("\uff14\uff12\n", []),
        ("123456789012\n", []),
        ("job 4242 submitted\n", []),
    ],
)
def test_a_job_is_named_by_a_whole_line(answer: str, jobs: list[str]):
    assert list(map(str, named_jobs(answer))) == jobs


@pytest.mark.parametrize("where", ["out", "err"])
@pytest.mark.parametrize("line", ["4242", "Submitted batch job 4242", "4242;alpha"])
def test_a_banner_around_the_id_changes_nothing(cluster: Cluster, where: str, line: str):
    """The job of a wrapper that writes everything to stderr counts as well."""
    said = f"{BANNER}{line}\r\nGoodbye\n"
    if where == "out":
        cluster.says("sbatch", said)
    else:
        (cluster.folder / "said").write_text(said)
        cluster.instead("sbatch", f"printf 'sbatch\\0\\n' >>{cluster.folder}/calls; cat {cluster.folder}/said >&2")
    job = submit(submission(), log=LOG, patience=0)
    assert job.number == "4242" and job.cluster == line.partition(";")[2]
    assert len(cluster.calls("sbatch")) == 1, "a script is submitted once"


@pytest.mark.parametrize(
    "said", [BANNER, "", "job 4242 submitted\n", "4242_0\n", f"{BANNER}12\n4242\n", "Error\n" * 500]
)
def test_where_nobody_can_tell_the_job_may_run_and_is_told_how_to_find(cluster: Cluster, said: str):
    cluster.says("sbatch", said)
    with pytest.raises(JobMayRunError, match=r"may be queued or running: .*'squeue --me --name=exatrkx' lists it") as e:
        submit(submission(), log=LOG, patience=0)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600 and e.value.exit_code == 4
    assert "the next 'exatrkx-hpc status' takes it over when Slurm reports it" in str(e.value)
    assert len(cluster.calls("sbatch")) == 1, "a script is submitted once"


def test_of_several_numbers_the_one_whose_output_is_the_farms_counts(cluster: Cluster):
    cluster.says("sbatch", "4000\n4242\n")
    cluster.knows(4242, log="/x/job-4242.log")
    mine = cluster.folder / "scontrol-job.out"
    cluster.instead("scontrol", f'[ "$3" = 4242 ] && exec cat {mine}\nsed -e s/4242/4000/g -e s:/x:/y: {mine}')
    assert submit(submission(), log=LOG, patience=0) == JobId(number="4242")


def test_a_number_in_a_banner_that_is_another_job_is_not_taken_for_this_one(cluster: Cluster):
    """The hours that are left, on a line of their own, and an answer that nobody can read."""
    cluster.says("sbatch", "Hours left:\n4242\njob 17 submitted\n")
    cluster.knows(4242, log="/home/me/training.out", name="training")
    with pytest.raises(JobMayRunError, match=r"does not identify the job \(4242\); the job may"):
        submit(submission(), log=LOG, patience=0)


@pytest.mark.parametrize(
    "complaint",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n",
        "sbatch: error: slurm_receive_msg: Zero Bytes were transmitted or received\n",
    ],
)
def test_an_answer_that_was_lost_on_the_way_is_no_refusal(cluster: Cluster, complaint: str):
    cluster.refuses("sbatch", complaint)
    with pytest.raises(JobMayRunError, match="may be queued or running"):
        submit(submission(), log=LOG, patience=0)


def test_an_sbatch_that_fails_after_it_has_submitted(cluster: Cluster):
    """Such as a wrapper whose last line fails: Slurm knows the job."""
    cluster.instead("sbatch", "echo 4242\necho 'log: No such file' >&2\nexit 1")
    with pytest.raises(LaunchError, match="sbatch refused"):
        submit(submission(), log=LOG, patience=0)
    cluster.knows(4242, log="/x/job-4242.log")
    assert submit(submission(), log=LOG, patience=0) == JobId(number="4242")


def test_facts_of_a_job():
    """As scontrol 22.05 prints them, with what a person may write into a name."""
    text = (FAKES / "slurm_answers" / "scontrol-22.05.txt").read_text()
    one, task = parse_facts("Welcome\n\n" + text)
    assert (one.uid, one.user, one.name, one.batch) == (20001, "physicist", "a b JobId=7 BatchFlag=0", True)
    assert same_log(one.log, "/home/100%%d/job-%j.log", "1") and not same_log(one.log, "/home/100%%d/job-%j.log", "2")
    assert (task.name, task.batch, task.log) == ("wrap", False, "")
    assert parse_facts("") == parse_facts("No jobs in the system\n") == ()


def test_submit_hands_over_the_script_and_returns_the_job(cluster: Cluster):
    cluster.says("sbatch", "4242;perlmutter\n")
    job = submit(submission("/a'; echo foo/farm.sbatch"), log=LOG, comment="my farm")
    assert (job, str(job)) == (JobId(number="4242", cluster="perlmutter"), "4242;perlmutter")
    assert cluster.calls() == [
        ["sbatch", "--parsable", "--comment=my farm exatrkx-hpc:0123456789abcdef", "/a'; echo foo/farm.sbatch"]
    ]


#: What sbatch of 22.05 and 24.11 print, what of it is told, and a word of the step that helps.
REFUSALS = [
    (
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n",
        "Invalid account or account/partition combination specified",
        "job.account",
    ),
    ("sbatch: error: Batch job submission failed: Invalid qos specification\n", "Invalid qos specification", "job.qos"),
    (
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        "invalid partition specified: nope; Invalid partition name specified",
        "job.partition",
    ),
    (
        "sbatch: error: Batch job submission failed: Invalid feature specification\n",
        "Invalid feature specification",
        "job.constraint",
    ),
    (
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)\n",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "job.time",
    ),
    (
        "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates "
        "accounting/QOS policy (job submit limit, user's size and/or time limits)\n",
        "QOSMaxWallDurationPerJobLimit; Job violates accounting/QOS policy (job submit limit, user's size and/or "
        "time limits)",
        "job.time",
    ),
    (
        "sbatch: error: Batch job submission failed: Node count specification invalid\n",
        "Node count specification invalid",
        "fewer nodes",
    ),
    (
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
        "Requested node configuration is not available",
        "job.gpus_per_node",
    ),
    ("sbatch: error: Invalid --time specification\n", "Invalid --time specification", "job.time"),
    (
        "sbatch: error: Batch job submission failed: Requested reservation is invalid\n",
        "Requested reservation is invalid",
        "job.reservation",
    ),
    (
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n",
        "Unable to contact slurm controller (connect failure)",
        "scontrol ping",
    ),
    (
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)\n",
        "Job violates accounting/QOS policy (job submit limit)",
        "sacctmgr show qos",
    ),
    ("sbatch: error: The moon is full\n", "The moon is full", "[job] in farm.toml"),
]


@pytest.mark.parametrize(("printed", "told", "step"), REFUSALS)
def test_a_refused_script_is_one_line_with_slurms_words_and_the_next_step(
    printed: str, told: str, step: str, cluster: Cluster
):
    cluster.refuses("sbatch", printed)
    with pytest.raises(LaunchError) as caught:
        submit(submission(), log=LOG, patience=0)
    message = str(caught.value)
    assert message.startswith(f"sbatch refused /x/farm.sbatch (exit 1): {told}; ")
    assert step in message.removeprefix(f"sbatch refused /x/farm.sbatch (exit 1): {told}; ")
    assert "\n" not in message


def test_test_only_tells_when_it_would_start_or_why_not(cluster: Cluster):
    assert sbatch_argv(Path("/a b/x"), comment="c d") == ["sbatch", "--parsable", "--comment=c d", "/a b/x"]
    assert check_argv(Path("/x")) == ["sbatch", "--test-only", "/x"]
    cluster.says(
        "sbatch",
        "Welcome\nsbatch: Job 12 to start at 2026-11-22T10:37:14 using 2 processors on nodes nid001\nGoodbye\n",
    )
    assert would_start(Path("/x")) == "Job 12 to start at 2026-11-22T10:37:14 using 2 processors on nodes nid001"
    cluster.refuses("sbatch", "allocation failure: Node count specification invalid\n")
    with pytest.raises(LaunchError, match=r"\(exit 1\): Node count specification invalid; ask for fewer nodes"):
        would_start(Path("/x"))


def test_without_slurm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingComponent, match=r"sbatch is not on PATH; run this on .* cluster\.scheduler"):
        submit(submission(), log=LOG, patience=0)
