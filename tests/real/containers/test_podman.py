"""A farm in real containers: podman as root, and NERSC's podman-hpc as an unprivileged user."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from images import site as sites
from images import triton_image
from images.site import IMAGE, Site
from paths import FAKES
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import kill_session, session_members
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.doctor.engine import engine_findings
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.doctor.orphans import orphan_findings
from exatrkx_hpc.fleet.members.probe import is_ready
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.launch.engines.common import ask
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.engines.table import engine_named
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.image_env import QUESTION, read_answer
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.work.map.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("nginx")

SHARED_MEMORY = Path("/dev/shm")
#: The image's Python is of the version that runs the tests.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module", params=["podman", "podman-hpc"])
def site(request) -> Iterator[Site]:
    """A site with the engine and the image; after the last test nothing of it is left."""
    if reason := sites.missing(request.param) or triton_image.missing():
        pytest.skip(reason)
    with sites.container_site(request.param) as made:
        if made.engine == "podman-hpc":
            made.must("migrate", IMAGE)
            # So that it is the packed copy, as on a site's nodes, that runs.
            made.must("rmi", IMAGE)
        yield made


def orphans_of(job: farm.Job) -> list[Finding]:
    return list(orphan_findings(job.farm, lambda name: job.scheduler.info(name).state))


@pytest.fixture
def on_path(site, monkeypatch) -> Site:
    """The site, with its engine first on PATH."""
    monkeypatch.setenv("PATH", f"{site.programs}{os.pathsep}{os.environ['PATH']}")
    return site


@pytest.fixture
def node(site, request) -> str:
    """A node of the test's own: a port stays in use for a while after a server has gone."""
    number = sorted(name for name in globals() if name.startswith("test_")).index(request.function.__name__)
    return f"127.0.{90 + number if site.engine == 'podman' else 110 + number}.1"


@pytest.fixture(scope="module")
def models(site) -> Path:
    """The models on a CPU, in the packed environment: the image's Python has no packages."""
    folder = site.folder / "models"
    build(asset("model_repos/exatrkx"), folder, device="cpu", environment=site.environment, fused=False)
    return folder


def flags(site: Site, name: str, node: str, **more: object) -> dict[str, object]:
    values = {
        "site": "local",
        "run_root": str(site.folder / name),
        "cluster.local_address": node,
        "job.nodes": 1,
        "server.engine": site.engine,
        "server.image": IMAGE,
        "server.shm_size": "512m",
        "server.drain": 0,
        "server.exit_timeout": 3,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
        "monitor.trial": False,
    }
    return {**values, **{key.replace("__", "."): value for key, value in more.items()}}


def record(job: farm.Job) -> ServerRecord | None:
    return next(iter(read_records(job.run_dir)), None)


def started(job: farm.Job, *, starts: int = 1) -> ServerRecord:
    """Wait for the record of the job's server in this start of it."""

    def found() -> ServerRecord | None:
        now = record(job)
        return now if now and now.starts == starts and now.state == "starting" else None

    return until(found, what=f"start {starts}; now {record(job)}", deadline=60)


def inside(site: Site, word: str) -> dict[int, str]:
    """The processes in the site's containers that have `word` in their command; the engine's own name the engine."""
    found = site.processes().items()
    return {pid: command for pid, command in found if word in command and "podman" not in command}


def hits_of(seed: int) -> np.ndarray:
    return generate_event(np.random.default_rng(seed), n_tracks=30).hits


def test_a_farm_in_a_container_finds_tracks_and_survives_the_death_of_its_server(on_path, models, node):
    """One farm for the whole story, because its start takes seconds."""
    site = on_path
    of_models = {"server__model_repository": str(models), "server__mounts": [str(site.environment)]}
    what = resolve(flags=flags(site, "story", node, **of_models)).farm
    direct = Pipeline.load(models)
    with farm.running(what, wait=120) as (job, watch), Endpoint(watch.endpoint, patience=180) as endpoint:
        hits = hits_of(1)
        labels = endpoint.find_tracks(hits)
        assert same_partition(labels, direct.find_tracks(hits))
        name = f"exatrkx-{job.id}-{node}-0"
        assert site.containers() == [name]
        # The models' code and Python come from the mounts, and no GPU is asked for.
        words = record_words(started(job))
        assert not {"--gpu", "--device", "--nv"} & set(words)
        assert f"{site.environment}:{site.environment}:ro" in words
        assert not list(SHARED_MEMORY.glob(f"exatrkx_*_{node}*")), "the container has a /dev/shm of its own"

        kill_one(inside(site, "tritonserver --id"))
        again = started(job, starts=2)
        assert endpoint.find_tracks(hits).shape == labels.shape
        assert site.containers() == [name]
    assert record(job).state == "gone"
    assert not psutil.pid_exists(again.pid)
    assert site.containers() == []
    until(lambda: not site.processes(), what=f"the end of {site.processes()}")


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def record_words(server: ServerRecord) -> list[str]:
    """The words of the engine's own process."""
    return Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")


def kill_one(processes: dict[int, str]) -> None:
    assert len(processes) == 1, processes
    os.kill(next(iter(processes)), signal.SIGKILL)


@pytest.fixture
def fake_farm(on_path, node) -> Iterator[farm.Job]:
    """Deploy a farm whose container runs a fake tritonserver: what is tested is the container's life."""
    jobs = []

    def deploy(**more: object) -> farm.Job:
        name = f"run-{node}"
        repository = on_path.folder / name / "models"
        repository.mkdir(parents=True, exist_ok=True)
        fake = {"server__triton": str(FAKES / "fake_tritonserver"), "server__mounts": [str(FAKES)], **more}
        what = resolve(flags=flags(on_path, name, node, server__model_repository=str(repository), **fake)).farm
        build_nothing(repository)
        jobs.append(farm.deploy(what))
        return jobs[-1]

    yield deploy
    for job in jobs:
        farm.stop(job, drain=False)


def build_nothing(repository: Path) -> None:
    """A repository of one model that nobody loads, so that deploy finds no fault in it."""
    (repository / "idle" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "idle" / "1" / "model.py").write_text("# never loaded\n")
    (repository / "idle" / "config.pbtxt").write_text('backend: "python"\n')


def test_a_container_whose_podman_was_killed_goes_before_the_next_starts(on_path, fake_farm, node):
    job = fake_farm()
    until(lambda: inside(on_path, "fake_tritonserver"), what="the server", deadline=60)
    (first,) = inside(on_path, "fake_tritonserver")
    os.kill(started(job).pid, signal.SIGKILL)  # the container lives on, and keeps its name and its ports
    started(job, starts=2)
    until(lambda: set(inside(on_path, "fake_tritonserver")) - {first}, what="the next server", deadline=60)
    assert not psutil.pid_exists(first)
    assert on_path.containers() == [f"exatrkx-{job.id}-{node}-0"]


def test_a_container_that_a_killed_job_left_is_replaced(on_path, fake_farm, node):
    name = f"exatrkx-1-{node}-0"
    on_path.must("run", "--detach", "--name", name, IMAGE, "sleep", "600")
    job = fake_farm()
    assert job.id == "1"
    until(lambda: inside(on_path, "fake_tritonserver"), what="the server in the container of that name", deadline=60)
    assert record(job).starts == 1
    assert on_path.containers() == [name]
    assert not inside(on_path, "sleep 600")


def test_a_job_that_was_killed_has_left_a_container_until_it_is_stopped(on_path, fake_farm, node):
    job = fake_farm()
    server = started(job)
    until(lambda: is_ready(server, 1.0), what="the server", deadline=60)  # not its process: that may end at once
    assert [finding.what for finding in orphans_of(job)] == ["orphans"]
    session = os.getsid(server.pid)
    for pid in session_members(session):  # first, so that none sees another's death and cleans up
        os.kill(pid, signal.SIGSTOP)
    kill_session(session)
    name = f"exatrkx-{job.id}-{node}-0"
    assert on_path.containers() == [name], (record(job), (job.run_dir.logs / f"{node}-0.log").read_text())
    (finding,) = orphans_of(job)
    assert (finding.found, finding.ok) == (name, False)
    assert finding.remedy == f"{on_path.engine} rm --force --time 0 --ignore {name}"
    farm.stop(job)
    assert on_path.containers() == []
    assert not inside(on_path, "fake_tritonserver")
    assert [finding.ok for finding in orphans_of(job)] == [True]


def test_doctor_finds_the_image_as_the_nodes_will(on_path):
    def found(image: str) -> tuple[str, bool]:
        values = {"site": "generic", "server.engine": on_path.engine, "server.image": image}
        finding = next(one for one in engine_findings(resolve(flags=values).farm) if one.what == "image")
        return finding.found, finding.ok

    assert found(IMAGE) == (IMAGE, True)
    assert found(f"{IMAGE}.1") == (f"{on_path.engine} has no {IMAGE}.1", False)


def test_a_server_that_ignores_the_end_is_killed_with_its_container(on_path, fake_farm):
    job = fake_farm(server__environment={"FAKE_TRITON": "ignore-term"}, server__exit_timeout=1)
    until(lambda: inside(on_path, "fake_tritonserver"), what="the server", deadline=60)
    time.sleep(0.5)  # it ignores the signal only once it has said so
    farm.stop(job, drain=False)
    assert on_path.containers() == []
    assert not inside(on_path, "fake_tritonserver")


def test_what_the_server_says_is_in_its_log_once(on_path, fake_farm):
    job = fake_farm(server__triton="echo", server__max_restarts=0)
    until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job", deadline=60)
    assert "ended with status 0" in record(job).note
    assert (job.run_dir.logs / f"{record(job).server}.log").read_text().count("--model-repository") == 1


def test_the_status_of_the_server_crosses_out_of_the_container(on_path, fake_farm):
    job = fake_farm(server__environment={"FAKE_TRITON": "exit:7"}, server__max_restarts=0)
    until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job", deadline=60)
    assert "ended with status 7" in record(job).note


def test_only_what_is_said_crosses_into_the_container(on_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("NOT_SAID", "1")
    text = on_path.must("run", "--rm", "--net", "host", "-e", "CUDA_VISIBLE_DEVICES", IMAGE, "env")
    assert "CUDA_VISIBLE_DEVICES=2,3" in text
    assert "NOT_SAID" not in text


def test_a_site_module_of_podman_hpc_is_a_flag(site):
    if site.engine == "podman":
        return
    assert site.must("run", "--rm", "--labels", "--net", "host", IMAGE, "cat", "/labels/text") == "seen"


def test_the_python_of_the_image_tells_its_version(on_path):
    spec = ContainerSpec(image=f"docker:{IMAGE}", command=("tritonserver",))
    done = ask(engine_named(on_path.engine).question(spec, ("python3", "-c", QUESTION)))
    found = read_answer(done.stdout)
    assert found is not None, done.complaint
    assert (found.version, found.executable) == (PYTHON, f"/usr/bin/python{PYTHON}")
