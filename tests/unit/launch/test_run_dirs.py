"""Run directories: which folders are, which may be removed, who may read them, and what other machines see."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from addresses import own_address
from local_farms import FAKE_TRITON, local_farm
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import ConfigError, LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.balancer.balancers import BALANCERS
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir
from exatrkx_hpc.launch.run_dirs import (
    last_change,
    local_file_system,
    of_this_machine,
    old_jobs,
    parse_age,
    remove,
    remove_old_scripts,
)

OLD = time.time() - 30 * 86400


def make(run_root: Path, name: str, *, mark: str = "plan.json", changed: float = OLD) -> Path:
    """A run directory in which nothing has changed since then."""
    run_dir = run_root / name
    (run_dir / "records").mkdir(parents=True)
    for file in (run_dir / mark, run_dir / "records" / "n-0.json"):
        file.write_text("{}")
    age(run_dir, changed)
    return run_dir


def age(run_dir: Path, changed: float) -> None:
    for folder, names, files in os.walk(run_dir):
        for name in (*names, *files, "."):
            os.utime(Path(folder, name), (changed, changed), follow_symlinks=False)


def old(run_root: Path, states: dict[str, JobState] | None = None) -> tuple[str, ...]:
    """The jobs that clean would remove after a week; a job that is not in `states` is one that nobody knows."""

    def infos(jobs: Sequence[str]) -> dict[str, JobInfo]:
        known = dict.fromkeys(jobs, JobState.COMPLETED) if states is None else states
        return {job: JobInfo(id=job, state=known.get(job, JobState.UNKNOWN)) for job in jobs}

    return old_jobs(FarmDir(run_root), older_than=7 * 86400, infos=infos)


def test_a_run_root_that_is_not_there_has_no_jobs(tmp_path):
    assert FarmDir(tmp_path / "none").job_ids() == ()
    assert old(tmp_path / "none") == ()


def test_only_folders_with_a_number_for_a_name_are_jobs(tmp_path):
    for name in ("10", "9", "007", "0", "²", "٣", "4_1", "-5", "scripts", "python", "1.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    (tmp_path / "12").symlink_to(tmp_path / "9")
    assert FarmDir(tmp_path).job_ids() == ("9", "10")


@pytest.mark.parametrize("state", JobState)
def test_only_a_job_that_is_over_is_removed(tmp_path, state):
    make(tmp_path, "1")
    expected = state not in (JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.UNKNOWN)
    assert old(tmp_path, {"1": state}) == (("1",) if expected else ())


def test_one_job_that_nobody_knows_does_not_keep_the_others(tmp_path):
    for name in ("1", "2", "3"):
        make(tmp_path, name)
    assert old(tmp_path, {"1": JobState.COMPLETED, "3": JobState.FAILED}) == ("1", "3")


def test_a_folder_of_something_else_is_left_alone_although_its_name_is_a_job_that_is_over(tmp_path):
    make(tmp_path, "2024", mark="events.npz")
    (tmp_path / "2025").mkdir()
    age(tmp_path / "2025", OLD)

    def infos(jobs: Sequence[str]) -> dict[str, JobInfo]:
        raise AssertionError(jobs)

    assert old_jobs(FarmDir(tmp_path), older_than=0, infos=infos) == ()


@pytest.mark.parametrize("mark", ["plan.json", "server.sh", "embedded-job.json"])
def test_a_run_directory_is_known_by_what_deploy_or_the_script_wrote(tmp_path, mark):
    make(tmp_path, "1", mark=mark)
    assert old(tmp_path) == ("1",)


def test_a_change_anywhere_in_it_keeps_it(tmp_path):
    deep = make(tmp_path, "1") / "prometheus" / "data"
    deep.mkdir(parents=True)
    (deep / "wal").touch()
    age(tmp_path / "1", OLD)
    assert last_change(tmp_path / "1") == pytest.approx(OLD)
    (deep / "wal").write_text("new")
    assert old(tmp_path) == ()


def test_what_links_lead_to_neither_counts_nor_goes(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "events.npz").write_text("precious")
    run_dir = make(tmp_path, "1")
    (run_dir / "data").symlink_to(kept)
    (run_dir / "dangling").symlink_to(tmp_path / "nowhere")
    (run_dir / "logs").symlink_to(kept)
    age(run_dir, OLD)
    assert old(tmp_path) == ("1",)
    remove(FarmDir(tmp_path).job("1"))
    assert not run_dir.exists()
    assert (kept / "events.npz").read_text() == "precious"


def test_a_link_in_the_place_of_a_run_directory_is_not_followed(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "5")
    (tmp_path / "5").symlink_to(elsewhere)
    assert old(tmp_path) == ()
    with pytest.raises(LaunchError, match="cannot be removed"):
        remove(FarmDir(tmp_path).job("5"))
    assert (elsewhere / "plan.json").exists()


def test_with_a_job_go_its_log_and_the_link_to_it_alone(tmp_path):
    for name in ("1", "11"):
        make(tmp_path, name)
        (tmp_path / f"job-{name}.log").touch()
    (tmp_path / "latest").symlink_to("1")
    remove(FarmDir(tmp_path).job("1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["11", "job-11.log"]


@pytest.mark.parametrize("target", ["11", "/elsewhere/1"])
def test_a_link_to_something_else_stays(tmp_path, target):
    make(tmp_path, "1")
    (tmp_path / "latest").symlink_to(target)
    remove(FarmDir(tmp_path).job("1"))
    assert (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600)])
def test_an_age_is_a_number_and_a_unit(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 d", "7d\n", "1y"])
def test_anything_else_is_no_age(text):
    with pytest.raises(ConfigError, match="is not a valid age"):
        parse_age(text)


def test_logs_are_the_jobs_own_and_each_servers(tmp_path):
    run_dir = make(tmp_path, "1")
    (run_dir / "logs").mkdir()
    for path in (tmp_path / "job-1.log", run_dir / "logs" / "b-0.log", run_dir / "logs" / "a-0.log"):
        path.touch()
    assert [path.name for path in RunDir(run_dir).log_files()] == ["job-1.log", "a-0.log", "b-0.log"]
    assert [path.name for path in RunDir(run_dir).log_files("b-0")] == ["b-0.log"]


def test_memory_is_a_file_system_of_one_machine():
    assert local_file_system(Path("/dev/shm/run root/that is not there yet")) == "tmpfs"
    assert local_file_system(Path("/proc/self")) is None


@pytest.mark.slow
def test_a_run_directory_is_read_by_its_owner_alone(tmp_path):
    """The secret is a variable of the server's, as a password of a model store is; everything it gets into is closed.

    The most open umask there is stands for what people have.
    """
    secret = "s3cret-of-the-model-store"
    run_root = tmp_path / "runs"
    repository = run_root / "models"
    (repository / "echo" / "1").mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text('name: "echo" backend: "identity"')
    values = {
        "site": "local",
        "run_root": str(run_root),
        "cluster.local_address": own_address(last=1),
        "server.triton": str(FAKE_TRITON),
        "server.model_repository": str(repository),
        "server.environment": {"AWS_SECRET_ACCESS_KEY": secret},
        "server.drain": 0,
        "server.exit_timeout": 2,
        "job.nodes": 1,
        "job.prologue": ["env"],
    }
    before = os.umask(0)
    try:
        job = farm.deploy(resolve(flags=values).farm)
        try:
            until(lambda: list(read_records(job.run_dir)), what="a record")
        finally:
            farm.stop(job, drain=False)
    finally:
        os.umask(before)
    modes = {path: path.lstat().st_mode & 0o777 for path in run_root.rglob("*") if not path.is_symlink()}
    holders = {path for path in modes if path.is_file() and secret.encode() in path.read_bytes()}
    names = {str(path.relative_to(run_root)) for path in holders if path.parent.name != "scripts"}
    assert names == {"1/plan.json", "1/server.sh"}
    assert {path.suffix for path in holders if path.parent.name == "scripts"} == {".sbatch"}
    assert {modes[path] & 0o077 for path in holders} == {0}
    assert modes[job.run_dir.path] == 0o700
    open_files = {
        path.name: oct(mode) for path, mode in modes.items() if path.is_relative_to(job.run_dir) and mode & 0o077
    }
    assert not open_files
    assert modes[run_root / "job-1.log"] == 0o600


@pytest.mark.parametrize("record", ["slurm-job.json", "embedded-job.json"])
def test_scripts_go_with_their_job_and_those_of_nobody_when_they_are_old(tmp_path, record):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    texts = ("of-a-job-20260101-000001", "removed-20260101-000002", "nobodys-20260101-000003", "mine")
    for name in texts:
        for suffix in (".sbatch", ".log"):
            (scripts / f"{name}{suffix}").write_text("x")
            os.utime(scripts / f"{name}{suffix}", (OLD, OLD))
    (scripts / "young-20260101-000004.sbatch").write_text("x")
    for job, name in (("1", texts[0]), ("2", texts[1])):
        run_dir = make(tmp_path, job)
        (run_dir / record).write_text(json.dumps({"script": str(scripts / f"{name}.sbatch")}))
    make(tmp_path, "3")
    (tmp_path / "3" / record).write_text("[7]")
    remove(FarmDir(tmp_path).job("2"))
    assert not list(scripts.glob("removed*")) and len(list(scripts.glob("nobodys*"))) == 2
    remove_old_scripts(FarmDir(tmp_path), older_than=7 * 86400)
    left = {path.name for path in scripts.iterdir()}
    kept = {f"{name}{suffix}" for name in ("of-a-job-20260101-000001", "mine") for suffix in (".sbatch", ".log")}
    assert left == kept | {"young-20260101-000004.sbatch"}


def test_a_record_that_names_a_script_of_somebody_else_removes_nothing_of_theirs(tmp_path):
    theirs = tmp_path / "farm.sbatch"
    theirs.write_text("x")
    (make(tmp_path, "1") / "slurm-job.json").write_text(json.dumps({"script": str(theirs)}))
    remove(FarmDir(tmp_path).job("1"))
    assert theirs.exists()


@pytest.mark.parametrize("folder", ["/tmp/farm", "/var/tmp/farm", "/dev/shm/farm"])
def test_what_every_machine_has_of_its_own_is_known(folder):
    assert of_this_machine(Path(folder)).startswith("is ")
    assert of_this_machine(Path("/usr/farm")) in ("", "is on overlay, which the nodes do not share with this machine")


def test_a_farm_for_which_no_address_is_free_leaves_nothing(tmp_path):
    repository = tmp_path / "models"
    (repository / "echo" / "1").mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text('name: "echo" backend: "identity"')
    flags = {"site": "local", "run_root": str(tmp_path), "server.triton": str(FAKE_TRITON), "job.nodes": 65}
    with pytest.raises(LaunchError, match="addresses with free ports"):
        farm.deploy(resolve(flags={**flags, "server.model_repository": str(repository)}).farm)
    assert FarmDir(tmp_path).job_ids() == () and not list((tmp_path / "scripts").iterdir())


def places(value: FarmDir | RunDir) -> set[Path]:
    """Every place that a value names."""
    names = [name for name, attribute in vars(type(value)).items() if isinstance(attribute, property)]
    return {place for name in names if isinstance(place := getattr(value, name), Path)}


def test_every_file_of_a_job_is_at_a_place_that_has_a_name(tmp_path, nginx, prometheus):
    """What scripts write is, too: nobody else has to know where it is."""
    ports = {"balancer__grpc_port": 0, "balancer__http_port": 0, "monitor__prometheus_port": 0}
    what = local_farm(tmp_path / "runs", **ports)
    with farm.running(what, wait=60) as (job, watch):
        run_dir = job.run_dir
        assert run_dir.endpoint.is_file() and watch.view.ready
        record = read_records(run_dir)[0]
        assert {path.stem for path in run_dir.log_files()} == {f"job-{job.id}", record.server}
    known = places(run_dir) | {run_dir.balancer(kind) for kind in BALANCERS}
    assert set(run_dir.path.iterdir()) <= known
    assert run_dir.cancelled.exists() and run_dir.exit_status.exists() and run_dir.stop.exists()
    assert run_dir.plan.is_file() and run_dir.embedded_job.is_file() and run_dir.server_script.is_file()
    assert all(mark.is_file() for mark in run_dir.marks)
    farm_dir = run_dir.farm
    assert farm_dir == FarmDir.of(what) and farm_dir.job(job.id) == run_dir
    assert farm_dir.latest.resolve() == run_dir.path
    others = {run_dir.path, run_dir.job_log, Path(what.server.model_repository)}
    assert set(farm_dir.path.iterdir()) <= places(farm_dir) | others
