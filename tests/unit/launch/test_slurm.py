"""Slurm as the scheduler: what is asked, how often, and what follows. The commands themselves are fakes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.slurm import Cluster
from waiting import until

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.launch.scheduler import SchedulerSilentError
from exatrkx_hpc.launch.slurm.job import Owner
from exatrkx_hpc.launch.slurm.refusals import next_step, own_words
from exatrkx_hpc.launch.slurm.scheduler import Slurm, ask, cancel_argv, drain_argv, halt_argv
from exatrkx_hpc.launch.slurm.snapshot import SlurmJobs, sacct_argv, settle, squeue_json_argv, squeue_lines_argv

UID = os.getuid()
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
DOWN_JSON = '{"errors": [{"error": "Unspecified error", "source": "slurm_load_jobs"}], "jobs": []}'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    yield made
    made.let_go()


class Clock:
    """A clock that a test moves; sleeping moves it."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(cluster: Cluster, clock: Clock) -> SlurmJobs:
    return SlurmJobs(ask, max_age=5, trust=30, patience=60, clock=clock, now=lambda: 1795329392)


@pytest.fixture
def slurm(jobs: SlurmJobs, clock: Clock) -> Slurm:
    return Slurm(grace=60, jobs=jobs, clock=clock, sleep=clock.sleep)


def line(job: int, state: str) -> str:
    return f"{job}|{state}|nid[001-002]|29:36|None|1795329367|1795329367|exatrkx\n"


def account(job: int, state: str, *, uid: int = UID, step: str = "") -> str:
    return f"{job}{step}|{uid}|{state}|nid001|1795329367|1795329367|1:0|None|00:30:00|00:00:10|exatrkx\n"


def json_queue(*jobs: tuple[int, str, int]) -> str:
    found = [{"job_id": job, "job_state": [state], "user_id": uid, "nodes": "nid001"} for job, state, uid in jobs]
    return json.dumps({"jobs": found, "errors": []})


def test_the_words_that_ask():
    for argv in (squeue_json_argv(), squeue_lines_argv()):
        assert "--me" in argv and not any(word.startswith("--jobs") for word in argv)
    assert "--jobs=42,43" in sacct_argv(["42", "43"])
    assert drain_argv("42") == ["scancel", "--batch", "--signal=USR2", "42"]
    assert halt_argv("42") == ["scancel", "--batch", "--signal=USR1", "42"]
    assert cancel_argv("42") == ["scancel", "42"]


def test_without_slurm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingComponent, match=r"squeue is not on PATH; run this on .* cluster\.scheduler"):
        Slurm().info("42")


def test_own_words_says_each_thing_once():
    assert own_words("squeue: error: down\nsqueue: error: down\n") == "down"
    assert own_words("") == "it gave no reason"
    assert next_step("?", otherwise="look") == "look"


@pytest.mark.parametrize(
    "said",
    [
        "Welcome\nto\nthe\nsite\nsbatch: error: Batch job submission failed: No nodes\n",
        "sbatch: error: Batch job submission failed: No nodes\nHave\na nice\nday\n.\n",
        "sbatch: error: No nodes\n",
    ],
)
def test_own_words_leave_a_banner_out(said: str):
    assert own_words(said) == "No nodes"


def test_a_site_may_explain_an_error_on_further_lines():
    assert own_words("Hello\nsbatch: error: No hours left\nask the desk\n") == "No hours left; ask the desk"


# --- how the queue is asked


def test_the_queue_is_asked_as_json_first(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue-json", json_queue((4242, "RUNNING", UID)))
    assert jobs.info("4242").state is JobState.RUNNING
    assert [call[1:] for call in cluster.calls()] == [["--me", "--states=all", "--json"]]


BANNER = "-----\n  Welcome to the {machine} | 12 | a | b | c | d | e | f\n-----\n\x1b[1;31mMaintenance\x1b[0m\r\n"


def test_a_banner_around_json_is_no_part_of_it(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue-json", BANNER + json_queue((4242, "RUNNING", UID)) + "\nGoodbye {you}\n")
    assert jobs.info("4242").state is JobState.RUNNING
    assert ["--json" in call for call in cluster.calls()] == [True]


def test_a_banner_around_lines_is_no_job(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", BANNER + "CLUSTER: alpha\n" + line(4242, "RUNNING").replace("\n", "\r\n") + "Goodbye\n")
    assert jobs.info("4242").state is JobState.RUNNING
    cluster.says("squeue", BANNER)
    cluster.says("sacct", BANNER + account(4243, "COMPLETED") + "Goodbye\n")
    assert jobs.info("4243").state is JobState.COMPLETED


@pytest.mark.parametrize("broken", [None, "{", DOWN_JSON, "squeue: error: no JSON here", BANNER])
def test_where_json_is_missing_or_broken_lines_are_asked_and_from_then_on(
    broken: str | None, cluster: Cluster, jobs: SlurmJobs, clock: Clock
):
    if broken is not None:
        cluster.says("squeue-json", broken)
    info = jobs.info("4242")
    assert (info.state, info.nodes, info.time_left) == (JobState.RUNNING, ("nid001", "nid002"), 29 * 60 + 36)
    clock.sleep(6)
    jobs.info("4242")
    assert ["--json" in call for call in cluster.calls()] == [True, False, False]


def test_a_slurm_that_sends_everybodys_jobs_as_json_is_asked_so_once(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue-json", json_queue((4242, "RUNNING", UID), (1, "RUNNING", UID + 1)))
    assert jobs.info("4242").state is JobState.RUNNING
    clock.sleep(6)
    assert jobs.info("4242").state is JobState.RUNNING
    assert ["--json" in call for call in cluster.calls("squeue")] == [True, False]


def test_many_jobs_and_many_looks_are_one_question(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue-json", json_queue((1, "RUNNING", UID), (2, "PENDING", UID)))
    for _ in range(10):
        assert (jobs.info("1").state, jobs.info("2").state) == (JobState.RUNNING, JobState.PENDING)
        clock.sleep(0.4)
    assert len(cluster.calls()) == 1
    clock.sleep(5)
    jobs.info("1")
    assert len(cluster.calls()) == 2


def test_a_job_that_is_new_is_asked_for_at_once(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue-json", json_queue((1, "RUNNING", UID)))
    jobs.info("1")
    cluster.says("squeue-json", json_queue((1, "RUNNING", UID), (2, "PENDING", UID)))
    assert jobs.info("2").state is JobState.PENDING


def test_slurm_is_asked_for_times_without_a_zone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    program = cluster.folder / "tell"
    program.write_text("#!/bin/sh\nprintenv SLURM_TIME_FORMAT\n")
    program.chmod(0o755)
    assert ask([str(program)]).stdout == "%s\n"


# --- what is not known


def test_a_queue_that_cannot_be_asked_is_not_an_empty_one(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue-json", DOWN_JSON)
    cluster.refuses("squeue", DOWN)
    cluster.says("sacct", account(4242, "NODE_FAIL"))
    info = jobs.info("4242")
    assert (info.state, info.reason) == (
        JobState.UNKNOWN,
        "Unable to contact slurm controller (connect failure)",
    )
    assert not cluster.calls("sacct")
    cluster.says("squeue", line(4242, "RUNNING"))
    clock.sleep(6)
    assert jobs.info("4242").state is JobState.RUNNING


def test_a_job_that_left_the_queue_is_asked_from_the_accounting_once(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue", line(4300, "RUNNING"))
    cluster.says("sacct", account(4243, "CANCELLED by 0"))
    for _ in range(3):
        assert jobs.info("4243").state is JobState.CANCELLED
        clock.sleep(6)
    assert len(cluster.calls("sacct")) == 1
    assert "--jobs=4243" in cluster.calls("sacct")[0]
    cluster.says("sacct", account(4244, "COMPLETED"))
    assert jobs.info("4244").state is JobState.COMPLETED
    assert "--jobs=4244" in cluster.calls("sacct")[1]


@pytest.mark.parametrize("accounting", ["", account(4300, "COMPLETED")])
def test_what_neither_knows_stays_unknown(cluster: Cluster, jobs: SlurmJobs, accounting: str):
    cluster.says("squeue", "")
    cluster.says("sacct", accounting)
    assert jobs.info("4242") == JobInfo(id="4242", state=JobState.UNKNOWN, reason="neither squeue nor sacct knows it")


def test_without_accounting_it_stays_unknown(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", "")
    cluster.refuses("sacct", "Slurm accounting storage is disabled\n")
    info = jobs.info("4242")
    assert (info.state, info.reason) == (
        JobState.UNKNOWN,
        "it has left the queue, and sacct says: Slurm accounting storage is disabled",
    )


def test_a_job_that_the_accounting_calls_running_and_the_queue_has_not_is_unknown(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", "")
    cluster.says("sacct", account(4242, "RUNNING"))
    info = jobs.info("4242")
    assert (info.state, info.reason) == (
        JobState.UNKNOWN,
        "it has left the queue, but accounting still reports RUNNING",
    )


def test_a_requeued_job_is_what_the_queue_says():
    queued = JobInfo(id="1", state=JobState.PENDING, reason="BeginTime")
    assert settle("1", queued, JobInfo(id="1", state=JobState.NODE_FAIL)) is queued


def test_a_job_that_failed_for_want_of_memory_says_so(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", line(4242, "FAILED"))
    cluster.says("sacct", account(4242, "FAILED") + account(4242, "OUT_OF_MEMORY", step=".0"))
    info = jobs.info("4242")
    assert (info.state, info.reason) == (JobState.OUT_OF_MEMORY, "step 4242.0 ran out of memory")


def test_a_failed_job_waits_for_the_accounting_which_lags(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue", line(4242, "FAILED"))
    cluster.says("sacct", account(4242, "RUNNING"))
    info = jobs.info("4242")
    assert (info.state, info.reason) == (JobState.COMPLETING, "it failed; accounting does not report the reason yet")
    cluster.says("sacct", account(4242, "FAILED") + account(4242, "OUT_OF_MEMORY", step=".0"))
    clock.sleep(6)
    assert jobs.info("4242").state is JobState.OUT_OF_MEMORY


def test_each_failed_job_of_many_is_looked_up(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", line(1, "RUNNING") + line(2, "FAILED") + line(3, "FAILED"))
    rows = (account(job, "FAILED") + account(job, "OUT_OF_MEMORY", step=".0") for job in (2, 3))
    cluster.says("sacct", "".join(rows))
    assert [jobs.info(job).state.value for job in "123"] == ["RUNNING", "OUT_OF_MEMORY", "OUT_OF_MEMORY"]


def test_a_failed_job_that_the_accounting_calls_anothers_at_first_is_not_judged_yet(
    cluster: Cluster, jobs: SlurmJobs, clock: Clock
):
    cluster.says("squeue", line(4242, "FAILED"))
    cluster.says("sacct", account(4242, "FAILED", uid=UID + 1))
    assert jobs.info("4242").state is JobState.COMPLETING
    cluster.says("sacct", account(4242, "FAILED") + account(4242, "OUT_OF_MEMORY", step=".0"))
    clock.sleep(6)
    assert jobs.info("4242").state is JobState.OUT_OF_MEMORY


def test_an_accounting_that_never_tells_is_not_waited_for(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue", line(4242, "FAILED"))
    cluster.says("sacct", "")
    assert jobs.info("4242").state is JobState.COMPLETING
    clock.sleep(21)
    assert jobs.info("4242").state is JobState.FAILED
    cluster.says("squeue", line(4243, "FAILED"))
    cluster.refuses("sacct", "Slurm accounting storage is disabled\n")
    assert jobs.info("4243").state is JobState.FAILED


def test_a_job_of_another_user_is_told_as_such(cluster: Cluster, jobs: SlurmJobs):
    cluster.says("squeue", "")
    cluster.says("sacct", account(4242, "RUNNING", uid=UID + 1))
    assert jobs.info("4242").reason == f"it is a job of another user, uid {UID + 1}"


def test_a_slurm_that_never_answered_is_an_error_and_one_that_falls_silent_is_not(
    cluster: Cluster, slurm: Slurm, clock
):
    cluster.refuses("squeue", DOWN)
    with pytest.raises(
        SchedulerSilentError, match=r"^Slurm does not answer: Unable to contact .*'scontrol ping'"
    ) as caught:
        slurm.info("4242")
    assert caught.value.exit_code == 4
    clock.sleep(6)
    cluster.says("squeue", line(4242, "RUNNING"))
    assert slurm.info("4242").state is JobState.RUNNING
    clock.sleep(6)
    cluster.refuses("squeue", DOWN)
    info = slurm.info("4242")
    assert (info.state, info.answered) == (JobState.UNKNOWN, False)


def test_a_slow_slurm_does_not_hold_the_caller_up(cluster: Cluster, clock: Clock):
    jobs = SlurmJobs(ask, max_age=5, trust=30, patience=0.05, clock=clock)
    assert jobs.info("4242").state is JobState.RUNNING
    cluster.hangs("squeue")
    clock.sleep(6)
    assert jobs.info("4242").state is JobState.RUNNING
    clock.sleep(30)
    info = jobs.info("4242")
    assert (info.state, info.reason) == (JobState.UNKNOWN, "Slurm has not answered for 36 s")
    asked = len(cluster.calls())
    jobs.info("4242")
    assert len(cluster.calls()) == asked
    cluster.hangs("squeue", hang=False)
    until(lambda: jobs.info("4242").state is JobState.RUNNING, what="RUNNING")


def test_a_machine_without_a_free_thread_is_asked_again(cluster: Cluster, clock: Clock, monkeypatch):
    jobs = SlurmJobs(ask, max_age=5, clock=clock)

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        with pytest.raises(RuntimeError, match="new thread"):
            jobs.info("4242")
    assert jobs.info("4242").state is JobState.RUNNING


@pytest.fixture
def late(cluster: Cluster, clock: Clock) -> SlurmJobs:
    """Slurm's second answer is under way, of what was before; the third will be of what is now.

    The first two know one job, that runs. By the third it was cancelled, and there is another one.
    """
    made = SlurmJobs(ask, max_age=5, trust=30, patience=0.05, clock=clock, lines_only=True)
    cluster.says("before", line(4242, "RUNNING"))
    cluster.says("now", line(4242, "CANCELLED") + line(4243, "PENDING"))
    tell = 'cd "$FAKE_SLURM"; echo >>asked; number=$(wc -l <asked)\n'
    wait = "[ $number != 2 ] || until [ -e go ]; do sleep 0.02; done\n"
    cluster.instead("squeue", f"{tell}{wait}[ $number -gt 2 ] && cat now.out || cat before.out")
    assert made.info("4242").state is JobState.RUNNING
    clock.sleep(6)
    assert made.info("4242").state is JobState.RUNNING, "the last answer, for nobody waits for the second"
    threading.Timer(0.3, (cluster.folder / "go").touch).start()
    return made


def test_an_answer_of_before_a_job_was_changed_is_none_of_after(late: SlurmJobs):
    late.forget()
    assert late.info("4242").state is JobState.CANCELLED


def test_an_answer_of_before_a_job_was_submitted_does_not_tell_of_it(cluster: Cluster, late: SlurmJobs):
    assert late.info("4243").state is JobState.PENDING
    assert not cluster.calls("sacct")


# --- pyslurm


def install_pyslurm(folder: Path, *, version: str, code: str) -> None:
    (folder / f"pyslurm-{version}.dist-info").mkdir()
    (folder / f"pyslurm-{version}.dist-info" / "METADATA").write_text(f"Name: pyslurm\nVersion: {version}\n")
    (folder / "pyslurm.py").write_text(code)


LIBRARY = """
import os, types
class Jobs:
    @staticmethod
    def load():
        one = types.SimpleNamespace(id=7, user_id=os.getuid(), state="RUNNING", state_reason="None", name="exatrkx",
            allocated_nodes="nid[001-002]", submit_time=1795329367, start_time=1795329367, end_time=1795330567,
            time_limit=20)
        return {7: one, 8: types.SimpleNamespace(id=8, user_id=os.getuid() + 1)}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(__import__("sys").modules, "pyslurm", raising=False)
    return folder


def version(cluster: Cluster, text: str) -> None:
    (cluster.folder / "squeue-version.out").write_text(text)


def test_a_library_that_fits_is_asked_instead(cluster: Cluster, jobs: SlurmJobs, library: Path):
    install_pyslurm(library, version="25.11.0", code=LIBRARY)
    version(cluster, "slurm 25.11.2\n")
    assert jobs.info("7") == JobInfo(
        id="7",
        state=JobState.RUNNING,
        nodes=("nid001", "nid002"),
        time_left=1795330567 - 1795329392,
        name="exatrkx",
        submit=1795329367,
        start=1795329367,
    )
    assert cluster.calls() == [["squeue", "--version"]]


@pytest.mark.parametrize("code", ["raise ImportError('libslurm.so.44')", "", LIBRARY.replace("load", "lode")])
def test_a_library_that_fails_is_passed_over(cluster: Cluster, jobs: SlurmJobs, library: Path, code: str):
    install_pyslurm(library, version="25.11.0", code=code)
    version(cluster, "slurm 25.11.2\n")
    assert jobs.info("4242").state is JobState.RUNNING


def test_a_library_of_another_release_is_not_even_imported(cluster: Cluster, jobs: SlurmJobs, library: Path):
    install_pyslurm(library, version="25.11.0", code="import os; os._exit(3)")
    version(cluster, "25.11 users are here\nslurm-wlm 22.05.8\n")
    assert jobs.info("4242").state is JobState.RUNNING


# --- cancel


#: What the jobs of these tests are known by.
OURS = Owner(log="/x/job-%j.log", line="run_dir=/x/$SLURM_JOB_ID")


def scancels(cluster: Cluster) -> list[list[str]]:
    return [call[1:] for call in cluster.calls("scancel")]


@pytest.mark.parametrize(("drain", "signal"), [(True, "USR2"), (False, "USR1")])
def test_cancel_tells_the_batch_script_alone(cluster: Cluster, slurm: Slurm, drain: bool, signal: str):
    cluster.knows(4242, log="/x/job-4242.log")
    slurm.cancel("4242", owner=OURS, drain=drain)
    assert scancels(cluster) == [["--batch", f"--signal={signal}", "4242"]]


@pytest.mark.slow
def test_a_job_that_does_not_drain_in_time_is_cancelled(cluster: Cluster, slurm: Slurm):
    cluster.knows(4242, log="/x/job-4242.log")
    cluster.says("squeue", line(4242, "RUNNING"))
    with pytest.raises(
        LaunchError, match=r"job 4242 is still RUNNING 60 s after scancel; see 'scontrol show job 4242'"
    ):
        slurm.cancel("4242", owner=OURS)
    assert scancels(cluster) == [["--batch", "--signal=USR2", "4242"], ["4242"]]


def test_a_pending_job_has_no_script_to_tell(cluster: Cluster, slurm: Slurm, monkeypatch: pytest.MonkeyPatch):
    cluster.knows(4242, log="/x/job-4242.log")
    cluster.says("squeue", line(4242, "PENDING"))
    program = cluster.folder / "scancel"
    program.write_text(f'#!/bin/sh\necho "$@" >>{cluster.folder}/said\nrm {cluster.folder}/squeue.out\n')
    program.chmod(0o755)
    (cluster.folder / "cancelled").touch()
    monkeypatch.setenv("PATH", f"{cluster.folder}{os.pathsep}{os.environ['PATH']}")
    slurm.cancel("4242", owner=OURS)
    assert (cluster.folder / "said").read_text() == "4242\n"


def test_a_job_that_is_over_is_left_alone(cluster: Cluster, slurm: Slurm):
    cluster.says("squeue", "")
    cluster.says("sacct", account(4242, "COMPLETED"))
    slurm.cancel("4242", owner=OURS)
    assert scancels(cluster) == []


FACTS = "Slurm does not report its owner"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"log": "/x/job-4242.log", "uid": UID + 1}, "it is 'exatrkx' of user somebody"),
        ({"log": "/y/job-4242.log"}, "it is another job of yours, 'exatrkx', which does not belong to this run root"),
        ({"log": "/x/job-4243.log", "name": "training"}, "it is another job of yours, 'training'"),
        ({"log": "", "batch": 0}, "it is another job of yours, 'exatrkx'"),
        ({"log": "(null)", "batch": 0, "name": "bash"}, "it is another job of yours, 'bash'"),
    ],
)
def test_a_job_that_is_not_the_farms_is_never_cancelled(
    cluster: Cluster, slurm: Slurm, facts: dict[str, object], why: str
):
    cluster.knows(4242, **facts)
    with pytest.raises(
        LaunchError, match=f"^job 4242 is not cancelled, because {re.escape(why)}.*; see 'scontrol show"
    ):
        slurm.cancel("4242", owner=OURS)
    assert scancels(cluster) == []


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        (DOWN, "does not answer; retry when 'scontrol ping'"),
        ("slurm_load_jobs error: Invalid job id specified\n", "'squeue --me --states=all' lists your jobs"),
    ],
)
def test_a_job_of_which_nobody_says_whose_it_is_is_not_cancelled(
    cluster: Cluster, slurm: Slurm, complaint: str, said: str
):
    cluster.refuses("scontrol-job", complaint)
    with pytest.raises(LaunchError, match=f"^job 4242 is not cancelled, because {FACTS} .*{re.escape(said)}"):
        slurm.cancel("4242", owner=OURS)
    cluster.says("scontrol-job", "Welcome to the site\n")
    with pytest.raises(LaunchError, match=f"{FACTS} \\(Welcome to the site\\); see 'scontrol show job 4242'"):
        slurm.cancel("4242", owner=OURS)
    assert scancels(cluster) == []


def test_a_job_that_was_submitted_by_hand_is_known_by_its_script(cluster: Cluster, slurm: Slurm):
    cluster.knows(4242, log="/home/me/slurm-4242.out", name="mine")
    cluster.says("scontrol-script", "#!/usr/bin/env bash\nset -euo pipefail\nrun_dir=/x/$SLURM_JOB_ID\nmkdir\n")
    slurm.cancel("4242", owner=OURS)
    assert len(scancels(cluster)) == 1


def test_an_allocation_is_known_by_its_name(cluster: Cluster, slurm: Slurm):
    cluster.knows(4242, log="", batch=0)
    slurm.cancel("4242", owner=dataclasses.replace(OURS, name="exatrkx"))
    assert len(scancels(cluster)) == 1


def test_each_task_of_an_array_must_be_the_farms(cluster: Cluster, slurm: Slurm):
    cluster.knows(4242, log="/x/job-4242.log")
    one = (cluster.folder / "scontrol-job.out").read_text()
    cluster.says("scontrol-job", "  Welcome\n" + one + one.replace("/x/job-4242.log", "/y/other.log"))
    with pytest.raises(LaunchError, match="another job of yours"):
        slurm.cancel("4242", owner=OURS)
    assert scancels(cluster) == []


def test_a_job_that_does_not_exist_is_an_error_though_scancel_is_silent(cluster: Cluster, slurm: Slurm):
    cluster.says("squeue", "")
    with pytest.raises(LaunchError, match=r"^job 999: neither squeue nor sacct knows it; 'squeue --me --states=all'"):
        slurm.cancel("999", owner=OURS)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (
            "scancel: error: Kill job error on job id 4242: Access/permission denied\n",
            r"scancel refused job 4242 \(exit 1\): Access/permission denied; the job belongs to another user",
        ),
        (
            "scancel: error: Kill job error on job id 4242: Unable to contact slurm controller (connect failure)\n",
            r"\(exit 1\): Unable to contact slurm controller \(connect failure\); Slurm's controller does not answer",
        ),
    ],
)
def test_a_refused_cancel_is_one_line(cluster: Cluster, slurm: Slurm, printed: str, message: str):
    cluster.knows(4242, log="/x/job-4242.log")
    cluster.refuses("scancel", printed)
    with pytest.raises(LaunchError, match=message) as caught:
        slurm.cancel("4242", owner=OURS)
    assert "\n" not in str(caught.value)


# --- many jobs at once


def test_fifty_ended_jobs_are_one_query_of_the_queue_and_one_of_the_accounting(cluster: Cluster, jobs: SlurmJobs):
    names = [str(1000 + place) for place in range(50)]
    cluster.says("squeue", line(4242, "RUNNING"))
    cluster.says("sacct", "".join(account(int(name), "COMPLETED") for name in names))
    found = jobs.infos([*names, "4242"])
    assert {info.state for job, info in found.items() if job != "4242"} == {JobState.COMPLETED}
    assert found["4242"].state is JobState.RUNNING
    asked = [call for call in cluster.calls("squeue") if "--version" not in call and "--json" not in call]
    assert (len(asked), len(cluster.calls("sacct"))) == (1, 1)


def test_a_command_line_has_an_end(cluster: Cluster, jobs: SlurmJobs):
    names = [str(1000 + place) for place in range(1100)]
    cluster.says("squeue", "")
    assert len(jobs.infos(names)) == 1100
    parts = [call[3].removeprefix("--jobs=").split(",") for call in cluster.calls("sacct")]
    assert [len(part) for part in parts] == [500, 500, 100] and sorted(job for part in parts for job in part) == sorted(
        names
    )


def test_a_pending_job_is_asked_for_each_30_s(cluster: Cluster, jobs: SlurmJobs, clock: Clock):
    cluster.says("squeue", line(4242, "PENDING"))
    jobs.info("4242")
    before = len(cluster.calls("squeue"))
    for _ in range(29):
        clock.sleep(1)
        assert jobs.info("4242").state is JobState.PENDING
    assert len(cluster.calls("squeue")) == before
    cluster.says("squeue", line(4242, "RUNNING"))
    clock.sleep(2)
    assert jobs.info("4242").state is JobState.RUNNING
    clock.sleep(6)
    jobs.info("4242")
    assert len(cluster.calls("squeue")) == before + 2, "a running job is asked for each 5 s"


def test_a_slow_slurm_does_not_make_a_pending_job_unknown(cluster: Cluster, clock: Clock):
    jobs = SlurmJobs(ask, max_age=5, trust=30, patience=0.1, clock=clock, now=lambda: 1795329392)
    cluster.says("squeue", line(4242, "PENDING"))
    jobs.info("4242")
    cluster.hangs("squeue")
    clock.sleep(50)
    assert jobs.info("4242").state is JobState.PENDING
    clock.sleep(10)
    assert jobs.info("4242").state is JobState.UNKNOWN
    cluster.let_go()
