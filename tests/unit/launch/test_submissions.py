"""A submission that is interrupted at any point loses no job. Slurm's commands are fakes."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
from command import PROGRAM
from fakes.slurm import Cluster
from repositories import tiny_repository
from schedulers import made as scheduler_and_plan
from schedulers import submitted as submitted_to
from submissions import TOKEN, submission
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError, NotStarted
from exatrkx_hpc.base.news import News
from exatrkx_hpc.base.process import run, spawn
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.events import JobAdopted, SubmissionOpen
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.schedulers import farm_slurm
from exatrkx_hpc.launch.slurm import scheduler
from exatrkx_hpc.launch.slurm import submissions as on_disk
from exatrkx_hpc.launch.slurm import submit as submitting
from exatrkx_hpc.launch.slurm.farm_jobs import read_record
from exatrkx_hpc.launch.slurm.job import JobId
from exatrkx_hpc.launch.slurm.submissions import Submissions, jobs_with, sought
from exatrkx_hpc.launch.slurm.submit import submit

#: An sbatch that takes the job and whose answer is lost: the fake squeue lists its comment.
TAKES = 'echo "4242|${{2#--comment=}}" >{folder}/squeue-comments.out\n{then}'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    monkeypatch.setattr(submitting, "_PATIENCE", 0)
    monkeypatch.setattr(on_disk, "_LATE", 0)
    return made


@pytest.fixture
def made(tmp_path: Path) -> Farm:
    (tmp_path / "runs" / "scripts").mkdir(parents=True)
    return resolve(flags={"run_root": str(tmp_path / "runs"), "job.comment": "my farm"}, ambient=False).farm


def submitted(made: Farm) -> str:
    script = FarmDir.of(made).scripts / "farm.sbatch"
    return farm_slurm(made).submit(script, make_plan(made))


def left(made: Farm) -> list[Path]:
    return sorted(FarmDir.of(made).submissions.glob("*"))


def test_the_token_is_on_disk_before_sbatch_starts_and_goes_when_the_job_has_its_folder(cluster: Cluster, made: Farm):
    cluster.instead("sbatch", f'cat {made.run_root}/submissions/*.json >{cluster.folder}/seen; echo "$@" >&2; echo 42')
    assert submitted(made) == "42"
    seen = json.loads((cluster.folder / "seen").read_text())
    assert seen["script"].endswith("farm.sbatch") and json.loads(seen["plan"])["name"] == "exatrkx"
    assert left(made) == [] and not FarmDir.of(made).submissions.exists()
    assert json.loads(FarmDir.of(made).job("42").plan.read_text())["name"] == "exatrkx"


def test_the_plan_is_in_the_run_directory_of_every_job(
    cluster: Cluster, made: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever submits it: `deploy` relies on it, and does not write the plan itself."""
    batch = submitted(made)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    cluster.instead("squeue", 'case "$*" in *json*) exit 1 ;; *) echo "7|RUNNING|nid001|29:36|None|1|1|a" ;; esac')
    shell = farm_slurm(made, interactive=True)
    inside = shell.submit(FarmDir.of(made).scripts / "farm.sbatch", make_plan(made))
    (tmp_path / "local").mkdir()
    local, plan = scheduler_and_plan("local", tmp_path / "local")
    here = submitted_to(local, plan, tmp_path, "#!/bin/bash\nexit 0\n")
    shell.cancel(inside, drain=False)
    local.cancel(here, drain=False)
    for run_dir in (FarmDir.of(made).job(batch), FarmDir.of(made).job(inside), FarmDir(tmp_path / "local").job(here)):
        assert json.loads(run_dir.plan.read_text())["name"] == "exatrkx"
        assert stat.S_IMODE(run_dir.plan.stat().st_mode) == 0o600


def test_a_submission_that_cannot_be_read_is_not_passed_over(tmp_path: Path):
    """It may be that of a job; a folder in its place stands for a disk that fails."""
    (tmp_path / "0123456789abcdef.json").mkdir()
    with pytest.raises(IsADirectoryError):
        Submissions(tmp_path).all()
    (tmp_path / "0123456789abcdef.json").rmdir()
    (tmp_path / "torn.json").write_text("{")
    assert Submissions(tmp_path).all() == ()


def test_the_file_is_for_its_owner_only(tmp_path: Path):
    with Submissions(tmp_path / "s").begun(Path("/x"), name="exatrkx", clusters=[""]) as one:
        assert stat.S_IMODE(Submissions(tmp_path / "s").file(one).stat().st_mode) == 0o600
        assert one.in_progress()
    assert not one.in_progress(), "the same process may come to settle it"


@pytest.mark.parametrize(
    "then", ["echo 'job taken'", "kill -9 $$", "exit 143", "echo 'sbatch: error: Socket timed out' >&2; exit 1"]
)
def test_after_an_unclear_answer_the_queue_is_asked_for_the_token(cluster: Cluster, made: Farm, then: str):
    cluster.instead("sbatch", TAKES.format(folder=cluster.folder, then=then))
    assert submitted(made) == "4242"
    assert read_record(FarmDir.of(made).job("4242")).script.endswith("farm.sbatch") and left(made) == []


def test_the_users_comment_comes_first(cluster: Cluster):
    assert submission().commented("my farm") == f"my farm exatrkx-hpc:{TOKEN}"
    assert submission().commented("") == f"exatrkx-hpc:{TOKEN}"


def test_a_refused_script_leaves_nothing(cluster: Cluster, made: Farm):
    cluster.refuses("sbatch", "sbatch: error: Batch job submission failed: Invalid qos specification\n")
    with pytest.raises(LaunchError, match="Invalid qos"):
        submitted(made)
    assert left(made) == []


def test_a_later_command_takes_the_job_over(cluster: Cluster, made: Farm):
    cluster.says("sbatch", "job taken\n")
    cluster.refuses("squeue-comments", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    (file,) = left(made)
    told: list[News] = []
    assert list(farm.jobs(made, tell=told.append)) == [] and left(made), "Slurm does not answer"
    (news,) = told
    assert isinstance(news, SubmissionOpen)
    silent = "squeue: Unable to contact slurm controller); retry when 'scontrol ping' succeeds"
    assert str(news).endswith(f"did not finish: Slurm does not say whether its job exists ({silent}")
    told.clear()
    cluster.says("squeue-comments", f"17|other\n4242|my farm exatrkx-hpc:{file.stem}\n")
    assert [job.id for job in farm.jobs(made, tell=told.append)] == ["4242"]
    (news,) = told
    assert isinstance(news, JobAdopted) and news.job == "4242" and "'exatrkx-hpc stop 4242' ends it" in str(news)
    assert left(made) == [] and FarmDir.of(made).job("4242").plan.exists()


def test_a_job_that_has_left_the_queue_is_found_in_the_accounting(cluster: Cluster):
    cluster.says("sacct", f"7||sbatch --wrap=x\n4242||sbatch --parsable --comment=a exatrkx-hpc:{TOKEN} /x\n")
    assert sought(submission()).jobs == (JobId(number="4242"),)
    assert jobs_with("w", "CLUSTER: a\nx|w\n12|a w b\n13|a\n12.batch|w\n", cluster="a") == (
        JobId(number="12", cluster="a"),
    )


def test_a_submission_without_a_job_is_forgotten_once_slurm_answers(cluster: Cluster, made: Farm):
    cluster.says("sbatch", "\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    assert farm_slurm(made).settle() and left(made) == []


@pytest.mark.parametrize("program", ["squeue", "scontrol"])
def test_a_question_that_cannot_be_asked_after_an_unclear_answer_ends_no_submission(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch, program: str
):
    """No process is left for squeue, or its program is gone: the job may exist all the same."""
    cluster.says("sbatch", "Hours left:\n4242\n")
    start = scheduler.find_program

    def find(name: str, *, remedy: str) -> str:
        if name == program:
            raise NotStarted(f"cannot start {name}: no process is left; end some")
        return start(name, remedy=remedy)

    monkeypatch.setattr(scheduler, "find_program", find)
    if program == "scontrol":  # one number, which nobody can check, is taken for the job's
        assert submitted(made) == "4242"
        return
    cluster.knows(4242, log="/home/me/training.out", name="training")
    with pytest.raises(JobMayRunError):
        submitted(made)
    told: list[News] = []
    assert not farm_slurm(made).settle(told.append) and left(made)
    assert "(cannot start squeue: no process is left); retry" in str(told[-1]) and "remove" not in str(told[-1])


def test_an_accounting_that_fails_does_not_deny_a_job(cluster: Cluster, made: Farm):
    cluster.says("sbatch", "\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    cluster.refuses("sacct", "sacct: error: Problem talking to the database: Connection refused\n")
    told: list[News] = []
    assert not farm_slurm(made).settle(told.append) and left(made)
    assert "(sacct: Problem talking to the database: Connection refused); retry" in str(told[-1])
    cluster.refuses("sacct", "Slurm accounting storage is disabled\n")
    assert farm_slurm(made).settle() and left(made) == [], "at a site without accounting, the queue alone answers"


def test_a_job_that_cannot_be_recorded_stays_open(cluster: Cluster, made: Farm):
    cluster.says("sbatch", "\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    (file,) = left(made)
    cluster.says("squeue-comments", f"4242|exatrkx-hpc:{file.stem}\n")
    FarmDir.of(made).job("4242").path.write_text("a file in the place of the job's folder")
    told: list[News] = []
    assert not farm_slurm(made).settle(told.append) and left(made)
    assert "job 4242 exists, but cannot be recorded (" in str(told[-1]) and "remove" not in str(told[-1])


def test_only_where_slurm_knows_no_job_a_removal_is_offered(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(on_disk, "_LATE", 600)
    monkeypatch.setattr(farm, "_SETTLED", 0)
    for name in ("refuse_faults", "require_site", "require_models"):
        monkeypatch.setattr(f"exatrkx_hpc.prepare.{name}", lambda *_, **__: None)
    cluster.says("sbatch", "\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    (file,) = left(made)
    with pytest.raises(LaunchError, match=f"may still accept one; retry in some minutes, or remove {file} to submit"):
        farm.deploy(made)
    cluster.refuses("squeue-comments", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(LaunchError, match=r"does not say whether its job exists .*ping' succeeds$"):
        farm.deploy(made)


def test_a_job_that_slurm_may_still_take_stays_open(cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_disk, "_LATE", 600)
    cluster.says("sbatch", "\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    assert not farm_slurm(made).settle() and left(made)


def test_the_next_deploy_tells_of_the_job_and_submits_none(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch
):
    cluster.says("sbatch", "job taken\n")
    with pytest.raises(JobMayRunError):
        submitted(made)
    (file,) = left(made)
    cluster.says("squeue-comments", f"4242|exatrkx-hpc:{file.stem}\n")
    for name in ("refuse_faults", "require_site", "require_models"):
        monkeypatch.setattr(f"exatrkx_hpc.prepare.{name}", lambda *_, **__: None)
    with pytest.raises(LaunchError, match=r"did not finish, but submitted job 4242; use that job, or repeat"):
        farm.deploy(made)
    assert len(cluster.calls("sbatch")) == 1
    cluster.says("sbatch", "4243\n")
    assert farm.deploy(made).id == "4243", "a repetition submits"


def test_a_submission_in_progress_is_left_alone(cluster: Cluster, made: Farm):
    with Submissions(FarmDir.of(made).submissions).begun(Path("/x"), name="exatrkx", clusters=[""]) as one:
        cluster.says("squeue-comments", f"4242|{one.word}\n")
        assert farm_slurm(made).settle() and left(made)
        assert FarmDir.of(made).job_ids() == ()


def test_ctrl_c_and_kill_do_not_reach_sbatch(cluster: Cluster, tmp_path: Path):
    """A deploy that is killed while sbatch waits for Slurm: sbatch submits, and `status` takes the job over."""
    tiny_repository(tmp_path / "runs" / "model_repository")
    cluster.hangs("sbatch")
    cluster.instead(
        "sbatch",
        f"while [ -e {tmp_path}/sbatch.slow ]; do sleep 0.05; done\n"
        f'echo "4242|$2" >{tmp_path}/squeue-comments.out; echo 4242',
    )
    words = [PROGRAM, "deploy", "--run-root", str(tmp_path / "runs"), "--trust-run-root"]
    child = spawn(words, log=tmp_path / "log", cwd=tmp_path)
    folder = tmp_path / "runs" / "submissions"
    until(lambda: list(folder.glob("*.json")), what=f"a submission: {(tmp_path / 'log').read_text()}", deadline=60)
    (file,) = folder.glob("*.json")
    until(lambda: on_disk.runs_with(f"exatrkx-hpc:{file.stem}"), what="sbatch", deadline=30)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait(30)
    cluster.let_go()
    until(lambda: not on_disk.runs_with(f"exatrkx-hpc:{file.stem}"), what="the end of sbatch", deadline=30)
    told = run([PROGRAM, "status", "--run-root", str(tmp_path / "runs")], cwd=tmp_path)
    assert "job 4242 comes from the deploy of" in told.stderr and "4242" in told.stdout
    assert not folder.exists()


def test_two_deploys_in_one_second_have_two_scripts(cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20261127-093000")
    for name in ("refuse_faults", "require_site", "require_models"):
        monkeypatch.setattr(f"exatrkx_hpc.prepare.{name}", lambda *_, **__: None)
    threads = [threading.Thread(target=farm.deploy, args=(made,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({call[-1] for call in cluster.calls("sbatch")}) == 2


def test_a_former_job_of_the_same_number_is_forgotten(cluster: Cluster, made: Farm):
    run_dir = FarmDir.of(made).job("4242")
    run_dir.records.mkdir(parents=True)
    for old in (run_dir.records / "nid001-0.json", run_dir.stop, run_dir.exit_status):
        old.write_text("x")
        os.utime(old, (0, 0))
    (run_dir.records / "nid002-0.json").write_text("a server of the new job")
    assert submitted(made) == "4242"
    assert [path.name for path in run_dir.records.iterdir()] == ["nid002-0.json"]
    assert not run_dir.stop.exists() and not run_dir.exit_status.exists()


def test_a_lost_answer_of_one_of_several_clusters(cluster: Cluster):
    cluster.instead("squeue", f'case "$1" in --clusters=beta) echo "42|exatrkx-hpc:{TOKEN}" ;; esac')
    one = submission().model_copy(update={"clusters": ("alpha", "beta")})
    cluster.says("sbatch", "taken\n")
    assert submit(one, log="/x", patience=0) == JobId(number="42", cluster="beta")


def here(made: Farm, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start a farm in a new allocation, as `deploy --interactive` does outside of one."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    script = FarmDir.of(made).scripts / "farm.sbatch"
    return farm_slurm(made, interactive=True).submit(script, make_plan(made))


def test_an_allocation_that_slurm_refuses_leaves_no_submission(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch
):
    cluster.instead("salloc", "echo 'salloc: error: Job submit/allocate failed: Invalid qos specification' >&2; exit 1")
    with pytest.raises(LaunchError, match="salloc was refused: Invalid qos specification; check"):
        here(made, monkeypatch)
    assert left(made) == []


@pytest.mark.parametrize("end", ["kill -9 $$", "echo 'salloc: error: Socket timed out' >&2; exit 1", "exit 0"])
def test_an_allocation_that_may_exist_leaves_its_submission(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch, end: str
):
    cluster.instead("salloc", end)
    with pytest.raises(JobMayRunError, match=r"reported no job ID: .*the next 'exatrkx-hpc status' takes it over"):
        here(made, monkeypatch)
    assert len(left(made)) == 1


def test_an_allocation_that_cannot_be_recorded_leaves_its_submission(
    cluster: Cluster, made: Farm, monkeypatch: pytest.MonkeyPatch
):
    cluster.instead("salloc", "echo 'salloc: Granted job allocation 4242'; exec sleep 60")
    FarmDir.of(made).job("4242").path.write_text("a file in the place of the job's folder")
    with pytest.raises(NotADirectoryError):
        here(made, monkeypatch)
    assert len(left(made)) == 1, "whether Slurm has released it, only Slurm can say"
