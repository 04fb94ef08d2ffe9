"""What farms of the past have left on this machine, told from what still works and from what is another's."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from addresses import own_address
from local_farms import FAKE_TRITON
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.process import Child, kill_session, spawn
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.doctor.orphans import OF_MONITORS, orphan_findings
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.fleet.orphans import FarmProcess, farm_processes
from exatrkx_hpc.launch.embedded.cleanup import containers, remove_containers, remove_shared_memory

NODE = own_address(last=1)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[farm.Job]:
    """A farm of one fake server."""
    repository = tmp_path / "models"
    (repository / "echo" / "1").mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text('name: "echo" backend: "identity"')
    values = {
        "site": "local",
        "run_root": str(tmp_path),
        "cluster.local_address": NODE,
        "server.triton": str(FAKE_TRITON),
        "server.model_repository": str(repository),
        "server.drain": 0,
        "server.exit_timeout": 2,
        "job.nodes": 1,
    }
    deployed = farm.deploy(resolve(flags=values).farm)
    until(lambda: list(read_records(deployed.run_dir)), what="a record")
    yield deployed
    farm.stop(deployed, drain=False)


def servers(run_root: Path) -> list[FarmProcess]:
    return list(farm_processes(run_root, of_monitors=OF_MONITORS))


def server_of(job: farm.Job) -> FarmProcess:
    """The job's server, as soon as it is that alone: what finds its interpreter may be a script of its own."""

    def found() -> FarmProcess | None:
        now = servers(Path(job.farm.run_root))
        return now[0] if len(now) == 1 and now[0].program.startswith("python") else None

    return until(found, what="the server's process")


def look(job: farm.Job) -> list[Finding]:
    return list(orphan_findings(job.farm, lambda name: job.scheduler.info(name).state))


def server_alone(job: farm.Job) -> FarmProcess:
    """Kill all of the job but its server, as when a machine runs out of memory."""
    server = server_of(job)
    session = os.getsid(server.pid)
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name != str(server.pid) and os.getsid(int(entry.name)) == session:
            os.kill(int(entry.name), signal.SIGKILL)
    until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job")
    return server


@pytest.mark.part
def test_a_server_whose_job_is_over_is_left_over(job):
    server = server_alone(job)
    (finding,) = look(job)
    assert (finding.what, finding.ok) == ("orphaned processes", False)
    assert f"{server.program} {server.pid} of job {job.id}" in finding.found
    assert finding.remedy == f"kill -KILL {server.pid}"
    kill_session(os.getsid(server.pid))
    assert [finding.what for finding in look(job) if finding.ok] == ["orphans"]


@pytest.mark.part
def test_a_server_whose_job_goes_on_is_none(job):
    assert server_of(job).job == job.id
    assert [(finding.what, finding.ok) for finding in look(job)] == [("orphans", True)]


@pytest.mark.part
def test_a_job_of_which_nobody_can_say_whether_it_is_over_has_left_nothing(job):
    def unknown(name: str) -> JobState:
        return JobState.UNKNOWN

    def refused(name: str) -> JobState:
        raise LaunchError("no word")

    server_of(job)
    for state in (unknown, refused):
        assert all(finding.ok for finding in orphan_findings(job.farm, state))


@pytest.mark.part
def test_a_server_of_another_run_root_is_not_looked_at(job, tmp_path):
    server_of(job)
    assert not servers(tmp_path / "other")
    assert not servers(tmp_path.parent)
    assert not servers(Path(str(tmp_path)[:-1]))


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Child]:
    """A process named prometheus, as a killed monitor leaves one."""
    (tmp_path / "prometheus").symlink_to("/bin/sleep")
    words = [str(tmp_path / "prometheus"), "600"]
    child = spawn(
        ["bash", "-c", 'exec -a "$0 $2" "$0" "$1"', *words, f"{tmp_path}/7/prometheus/x"], log=tmp_path / "log"
    )
    until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "prometheus\n", what="its name")
    yield child
    child.stop(grace=0)


def test_a_metrics_store_of_a_job_is_found_by_its_folder(sleeper, tmp_path):
    assert servers(tmp_path) == [FarmProcess(pid=sleeper.pid, program="prometheus", job="7")]
    assert not servers(tmp_path / "7")


# Containers; real ones are in test_podman.py


class Podman:
    """A fake podman that lists these containers, and writes down what it was told to remove."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "podman").write_text(
            f"#!/bin/bash\n"
            f'if [ "$*" = "ps --all --format json" ]; then cat {folder}/rows; exit "$(cat {folder}/status)"; fi\n'
            f'printf "%s\\n" "$*" >>{folder}/called; exit "$(cat {folder}/rm-status)"\n'
        )
        (folder / "podman").chmod(stat.S_IRWXU)
        self.set([])

    def set(self, rows: list[dict[str, object]] | str, *, status: int = 0, removal: int = 0) -> None:
        (self.folder / "rows").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        (self.folder / "status").write_text(str(status))
        (self.folder / "rm-status").write_text(str(removal))

    def called(self) -> str:
        file = self.folder / "called"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Podman:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Podman(folder)


def row(name: str, run_root: Path, state: str = "running") -> dict[str, object]:
    return {"Names": [name], "Mounts": ["/models", f"{run_root}/python/0.1.0"], "State": state, "Id": "1c6b2f1a9d3e"}


RUN_ROOT = Path("/shared/runs")
MINE = [row("exatrkx-3-nid001-0", RUN_ROOT), row("exatrkx-3-nid-two-11", RUN_ROOT, "exited")]
OTHERS = [
    row("exatrkx-3-nid001-0", Path("/shared/runs2")),
    row("exatrkx-3-nid001-0", Path("/shared")),
    row("exatrkx-demo", RUN_ROOT),
    row("my-exatrkx-3-nid001-0", RUN_ROOT),
    {"Names": ["exatrkx-3-nid001-1"], "Mounts": None, "State": "running"},
    {"Names": None, "Mounts": [], "State": "running"},
    {},
]


def test_a_farms_containers_are_known_by_name_and_run_root(podman):
    podman.set([*OTHERS, *MINE])
    found = [(one.name, one.job, one.running) for one in containers("podman", RUN_ROOT)]
    assert found == [("exatrkx-3-nid001-0", "3", True), ("exatrkx-3-nid-two-11", "3", False)]


def test_those_of_one_job_are_removed_in_one_command(podman):
    podman.set([*MINE, row("exatrkx-33-nid001-0", RUN_ROOT)])
    remove_containers("podman", RUN_ROOT, "3")
    assert podman.called() == "rm --force --time 0 --ignore exatrkx-3-nid001-0 exatrkx-3-nid-two-11\n"


def test_where_nothing_is_left_nothing_is_removed(podman):
    podman.set(OTHERS)
    remove_containers("podman", RUN_ROOT, "3")
    assert podman.called() == ""


@pytest.mark.parametrize("engine", ["none", "shifter", "apptainer"])
def test_other_engines_leave_no_container(engine):
    assert containers(engine, RUN_ROOT) == ()


def test_a_container_that_does_not_go_is_one_line_with_the_command(podman):
    podman.set(MINE[:1], removal=125)
    with pytest.raises(
        LaunchError, match=r"job 3 still exist .*'podman rm --force --time 0 --ignore exatrkx-3-nid001-0'"
    ):
        remove_containers("podman", RUN_ROOT, "3")


@pytest.mark.parametrize(("rows", "status"), [("no JSON", 0), ("[]", 125), ("{}", 0)])
def test_a_podman_that_does_not_answer_is_one_line(podman, rows, status):
    podman.set(rows, status=status)
    with pytest.raises(LaunchError, match="cannot list the containers of"):
        containers("podman", RUN_ROOT)


def test_doctor_names_the_containers_of_jobs_that_are_over(podman, tmp_path):
    for name in ("3", "4"):
        (tmp_path / name).mkdir()
    states = {"3": JobState.FAILED, "4": JobState.RUNNING}
    rows = [row(f"exatrkx-{name}-nid001-0", tmp_path) for name in ("3", "4", "5")]
    podman.set(rows)
    values = {"site": "local", "run_root": str(tmp_path), "server.engine": "podman", "server.image": "a:1"}
    what = resolve(flags=values).farm
    (finding,) = orphan_findings(what, states.__getitem__)
    assert (finding.what, finding.ok) == ("orphaned containers", False)
    assert finding.remedy == "podman rm --force --time 0 --ignore exatrkx-3-nid001-0 exatrkx-5-nid001-0"
    podman.set(rows[1:2])
    (finding,) = orphan_findings(what, states.__getitem__)
    assert (finding.what, finding.ok) == ("orphans", True)
    podman.set([], status=125)
    findings = list(orphan_findings(what, states.__getitem__))
    assert [finding.what for finding in findings if not finding.ok] == ["orphaned containers"]


# Shared memory


def test_shared_memory_goes_unless_somebody_uses_it_or_it_is_another_jobs(tmp_path):
    job = str(os.getpid())
    names = {name: Path(f"/dev/shm/exatrkx_{name}_s") for name in (f"{job}_n1-0", f"{job}_n10-0", f"{job}1_n1-0")}
    used = Path(f"/dev/shm/exatrkx_{job}_n1-1_s")
    user = "import mmap, sys, time; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 4); print(1, flush=True); "
    try:
        for path in (*names.values(), used):
            path.write_bytes(b"1234")
        child = spawn(["python3", "-c", user + "time.sleep(600)", str(used)], log=tmp_path / "log")
        try:
            until(lambda: (tmp_path / "log").read_text() == "1\n", what="its use")
            remove_shared_memory(job, ["n1"])
            left = {name for name, path in names.items() if path.exists()}
            assert left == {f"{job}_n10-0", f"{job}1_n1-0"}
            assert used.exists()
        finally:
            child.stop(grace=0)
        remove_shared_memory(job, ["n1"])
        assert not used.exists()
    finally:
        for path in (*names.values(), used):
            path.unlink(missing_ok=True)
