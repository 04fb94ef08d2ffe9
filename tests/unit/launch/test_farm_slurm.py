"""The farms of a run root on two clusters, in which the same number is two jobs. The commands are fakes.

The one cluster (alpha) has the farm, this machine's own has somebody's training under the same number.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.slurm import Cluster

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir
from exatrkx_hpc.launch.scheduler import JobMayRunError
from exatrkx_hpc.launch.schedulers import farm_slurm
from exatrkx_hpc.launch.slurm import submit as submitting
from exatrkx_hpc.launch.slurm.farm_jobs import read_record

#: Each notes its words; `queue` is what the cluster says of job 4242 (state and name).
SQUEUE = """\
case " $* " in *" --json "*) exit 1 ;; *" --version "*) echo slurm 22.05.8; exit ;; esac
state=RUNNING name=training
case $1 in --clusters=alpha) name=exatrkx; [ -e {folder}/ended ] && state=COMPLETED ;; esac
echo "4242|$state|nid001|29:36|None|1795329367|1795329367|$name"
"""
SCANCEL = 'echo "$@" >>{folder}/scancel.calls; [ "$1" = --clusters=alpha ] && touch {folder}/ended; exit 0'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    monkeypatch.setattr(submitting, "_PATIENCE", 0)
    made.says("sbatch", "Welcome\n4242;alpha\n")
    made.instead("squeue", SQUEUE.format(folder=tmp_path))
    made.instead("scancel", SCANCEL.format(folder=tmp_path))
    theirs = f"{tmp_path}/theirs.log"
    made.knows(4242, log=theirs, name="training")
    facts = (tmp_path / "scontrol-job.out").read_text()
    ours = facts.replace("training", "exatrkx").replace(theirs, f"{tmp_path}/runs/job-4242.log")
    (tmp_path / "ours").write_text(ours)
    (tmp_path / "theirs").write_text(facts)
    made.instead("scontrol", f'[ "$1" = --clusters=alpha ] && exec cat {tmp_path}/ours\nexec cat {tmp_path}/theirs')
    return made


def submitted(tmp_path: Path) -> str:
    """Submit a farm and forget the scheduler, as another command would."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    return farm_slurm(made).submit(tmp_path / "runs" / "farm.sbatch", make_plan(made))


def scancels(tmp_path: Path) -> list[str]:
    file = tmp_path / "scancel.calls"
    return file.read_text().splitlines() if file.exists() else []


def test_a_job_is_watched_and_stopped_on_the_cluster_that_took_it(cluster: Cluster, tmp_path: Path):
    assert submitted(tmp_path) == "4242"
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    job = farm.find_job(made)
    assert (job.id, job.cluster) == ("4242", "alpha")
    info = farm_slurm(made).info("4242")
    assert (info.state, info.name, info.cluster) == (JobState.RUNNING, "exatrkx", "alpha")
    assert [view.as_dict()["cluster"] for view in map(farm.status, farm.jobs(made))] == ["alpha"]
    farm.stop(job)
    assert scancels(tmp_path) == ["--clusters=alpha --batch --signal=USR2 4242"]
    assert farm.find_job(made, "4242;alpha").id == "4242"
    with pytest.raises(LaunchError, match="does not belong to cluster beta"):
        farm.find_job(made, "4242;beta")


def test_a_run_directory_that_names_no_cluster_does_not_touch_another_job(cluster: Cluster, tmp_path: Path):
    """As one of an earlier version is, that cut the cluster's name off."""
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    run_dir = tmp_path / "runs" / "4242"
    run_dir.mkdir(parents=True)
    (run_dir / "plan.json").write_text("{}")
    with pytest.raises(LaunchError, match="job 4242 is not cancelled, because it is another job of yours, 'training'"):
        farm.stop(farm.find_job(made))
    assert scancels(tmp_path) == []


def test_a_recycled_number_is_unknown(cluster: Cluster, tmp_path: Path):
    submitted(tmp_path)
    record = tmp_path / "runs" / "4242" / "slurm-job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "cluster": ""}))
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    info = farm_slurm(made).info("4242")
    assert info.state is JobState.UNKNOWN
    assert info.reason.startswith("the job ID now belongs to another job: it is another job of yours, 'training'")
    with pytest.raises(LaunchError, match="is not cancelled"):
        farm_slurm(made).cancel("4242")
    assert scancels(tmp_path) == []


def test_a_renamed_job_is_still_ours(cluster: Cluster, tmp_path: Path):
    submitted(tmp_path)
    record = tmp_path / "runs" / "4242" / "slurm-job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": "before"}))
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    assert farm_slurm(made).info("4242").state is JobState.RUNNING


def test_a_job_that_may_run_leaves_its_script_and_no_folder(cluster: Cluster, tmp_path: Path):
    cluster.says("sbatch", "Welcome\n")
    with pytest.raises(JobMayRunError):
        submitted(tmp_path)
    assert FarmDir(tmp_path / "runs").job_ids() == ()


def test_a_job_whose_folder_cannot_be_written_is_named_though_slurm_is_silent_now(cluster: Cluster, tmp_path: Path):
    """sbatch has answered, so the silence after it is no reason to say less than the job's number."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "4242").write_text("a file in the place of the job's folder")
    for program in ("squeue", "scontrol"):
        cluster.instead(program, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(JobMayRunError, match=r"runs/4242 cannot be written \(.*\); job 4242 may run \(.*not cancelled"):
        submitted(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cluster": 7}', b"\xff\xfe"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: bytes):
    RunDir(tmp_path).slurm_job.write_bytes(content)
    assert read_record(RunDir(tmp_path)).cluster is None


def test_a_pending_job_whose_script_has_begun_is_asked_for_at_once(cluster: Cluster, tmp_path: Path):
    """Otherwise a job that has just started would be told as pending for half a minute."""
    cluster.instead("squeue", SQUEUE.format(folder=tmp_path).replace("state=RUNNING", f"state=$(cat {tmp_path}/state)"))
    (tmp_path / "state").write_text("PENDING")
    submitted(tmp_path)
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    scheduler = farm_slurm(made)
    assert scheduler.info("4242").state is JobState.PENDING
    (tmp_path / "state").write_text("RUNNING")
    assert scheduler.info("4242").state is JobState.PENDING
    FarmDir.of(made).job("4242").server_script.write_text("")
    assert scheduler.info("4242").state is JobState.RUNNING


def test_a_silent_cluster_does_not_hide_the_jobs_of_another(cluster: Cluster, tmp_path: Path):
    submitted(tmp_path)
    other = RunDir(tmp_path / "runs" / "7")
    other.path.mkdir()
    other.slurm_job.write_text('{"cluster": "beta"}')
    down = 'case $1 in --clusters=beta) echo "squeue: error: down" >&2; exit 1 ;; esac\n'
    cluster.instead("squeue", down + SQUEUE.format(folder=tmp_path))
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    found = farm_slurm(made).infos(["7", "4242"])
    assert (found["4242"].state, found["7"].state, found["7"].answered) == (JobState.RUNNING, JobState.UNKNOWN, False)
    with pytest.raises(LaunchError, match="down"):
        farm_slurm(made).infos(["7"])


@pytest.mark.parametrize("ended", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_requeues_has_not_ended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
):
    cluster.instead("squeue", SQUEUE.format(folder=tmp_path).replace("state=RUNNING", f"state={ended}"))
    made = resolve(flags={"run_root": str(tmp_path / "runs"), "job.requeue": True}, ambient=False).farm
    (tmp_path / "runs").mkdir()
    clock = [0.0]
    scheduler = farm_slurm(made)
    monkeypatch.setattr(scheduler, "_clock", lambda: clock[0])
    job = scheduler.submit(tmp_path / "runs" / "farm.sbatch", make_plan(made))
    now = scheduler.info(job)
    assert (now.state, now.reason) == (JobState.COMPLETING, f"{ended}, Slurm may requeue it")
    clock[0] = 61.0
    assert scheduler.info(job).state is JobState[ended], "Slurm has not requeued it"


def test_without_requeue_it_has_ended(cluster: Cluster, tmp_path: Path):
    cluster.instead("squeue", SQUEUE.format(folder=tmp_path).replace("state=RUNNING", "state=PREEMPTED"))
    submitted(tmp_path)
    made = resolve(flags={"run_root": str(tmp_path / "runs")}, ambient=False).farm
    assert farm_slurm(made).info("4242").state is JobState.PREEMPTED
