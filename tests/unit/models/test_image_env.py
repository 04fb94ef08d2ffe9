"""The models' packages for an image whose Python has none: fetched by setup, used by a real Triton."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from command import complaint, exatrkx_hpc
from paths import FAKES
from repositories import tiny_repository
from triton_helper import running_triton

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import Completed, session_members
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.image_env import read_answer
from exatrkx_hpc.models.repository import ENVIRONMENT, read_models
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

pytestmark = pytest.mark.slow


IMAGE = "docker:nvcr.io/nvidia/tritonserver:25.08-py3"
NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0", "PIP_EXTRA_INDEX_URL": ""}


def setup_in(folder: Path) -> Callable[..., Completed]:
    """Return `setup` with a fake shifter whose image is this machine, so that the image's Python is that of PATH."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("shifter", "shifterimg"):
        (programs / name).symlink_to(FAKES / name)
    for name in ("gateway", "registry"):
        (folder / name).write_text(f"{IMAGE}\n")

    def call(*words: str, **more: str) -> Completed:
        values = {
            "RUN_ROOT": folder / "runs",
            "SERVER_ENGINE": "shifter",
            "SERVER_IMAGE": IMAGE,
            "SERVER_PYTHON_ENVIRONMENT": folder / "environment",
        }
        env = {f"EXATRKX_HPC_{name}": str(value) for name, value in values.items()}
        env |= {"FAKE_SHIFTERIMG": str(folder / "gateway"), "FAKE_REGISTRY": str(folder / "registry")}
        env["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
        words = ("--no-fused", "--trust-run-root", *words)
        return exatrkx_hpc("setup", *words, cwd=folder, env={**env, **more}, timeout=600)

    return call


@pytest.fixture
def setup(tmp_path):
    """`setup` in a folder of the test's own."""
    return setup_in(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A folder in which `setup` has fetched packages from PyPI, what it said, and `setup` again."""

    folder: Path
    done: Completed
    again: Callable[..., Completed]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Packages are fetched once, because that takes long; for the Python that runs the tests, as Triton has it."""
    folder = tmp_path_factory.mktemp("fetched")
    again = setup_in(folder)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin" / "python3").symlink_to(Path(sys.base_exec_prefix, "bin", f"python{version}"))
    done = again()
    assert done.returncode == 0, done.stderr
    return Fetched(folder=folder, done=done, again=again)


def test_setup_fetches_the_packages_and_builds_the_models_with_them(fetched):
    place, done = fetched.folder / "environment", fetched.done
    assert "packages: fetching numpy<2, scipy for Python 3." in done.stderr
    facts = json.loads((place / "exatrkx-environment.json").read_text())
    assert facts["packages"] == ["numpy<2", "scipy"]
    models = read_models(fetched.folder / "runs" / "model_repository")
    assert {m.parameters.get(ENVIRONMENT) for m in models if m.backend == "python"} == {str(place)}
    before = (place / "pyvenv.cfg").stat().st_mtime_ns
    again = fetched.again(**NOWHERE)
    assert (again.returncode, "fetching" in again.stderr) == (0, False), again.stderr
    assert (place / "pyvenv.cfg").stat().st_mtime_ns == before, "safe to repeat"


@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_a_real_triton_runs_the_models_on_these_packages_alone(fetched, tmp_path):
    """The stages that need no network: they import numpy and scipy, and are told where from."""
    place, source = fetched.folder / "environment", tmp_path / "source"
    shutil.copytree(asset("model_repos/exatrkx") / "frnn", source / "frnn")
    build(source, tmp_path / "models", device="gpu", environment=place)
    with running_triton(tmp_path / "models", tmp_path) as server, grpc.InferenceServerClient(server.grpc) as client:
        hits = np.random.default_rng(5).normal(size=(40, 8), scale=0.5).astype(np.float32)
        tensor = grpc.InferInput("INPUT0", hits.shape, "FP32")
        tensor.set_data_from_numpy(hits)
        edges = client.infer("frnn", [tensor]).as_numpy("OUTPUT0")
        loaded = [
            line.split()[-1]
            for pid in session_members(server.child.pid)
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        ]
    wanted = fixed_radius_edges(hits, radius=DEFAULT_SETTINGS.radius, max_neighbours=DEFAULT_SETTINGS.max_neighbours)
    assert wanted.size
    assert set(map(tuple, edges.T)) == set(map(tuple, wanted.T))
    used = {Path(file) for file in loaded if "/numpy/" in file or "/scipy/" in file}
    assert used and all(file.is_relative_to(place) for file in used)


def refused(done: Completed, code: int) -> str:
    """Return the one line of the refusal, which follows what setup said of its steps."""
    return complaint(dataclasses.replace(done, stderr=done.stderr.splitlines()[-1]), code)


def test_packages_that_cannot_be_fetched_leave_nothing(setup, tmp_path):
    said = refused(setup(**NOWHERE), 7)
    assert "pip has no numpy<2, scipy for Python 3." in said
    assert "models pack-env --python python3." in said
    assert not (tmp_path / "environment").exists()
    assert not list(tmp_path.glob(".environment*"))
    assert not (tmp_path / "runs" / "model_repository").exists(), "models that would use the image's own"


def test_a_package_that_does_not_exist_is_named(setup, tmp_path):
    assert "no-such-package-of-exatrkx" in refused(setup("--package", "no-such-package-of-exatrkx==0"), 7)


def test_an_image_without_python(setup, tmp_path):
    (tmp_path / "bin" / "python3").write_text("#!/bin/bash\necho no python here >&2\nexit 127\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    said = refused(setup(), 7)
    assert f"python3 of {IMAGE} does not report its version: no python here; create {tmp_path}/environment" in said


def test_a_repository_that_takes_no_notice_of_the_packages_is_told(setup, tmp_path):
    (tmp_path / "environment").mkdir()
    tiny_repository(tmp_path / "runs" / "model_repository")
    done = setup()
    assert done.returncode == 0, done.stderr
    assert "models: exatrkx of" in done.stderr
    assert f"'exatrkx-hpc models build --environment {tmp_path}/environment'" in done.stderr


def test_a_container_sees_the_packages_that_are_there(tmp_path):
    place = tmp_path / "environment"
    flags = {"run_root": "/data/farm", "server.engine": "podman-hpc", "server.image": IMAGE}
    farm = resolve(flags={**flags, "server.python_environment": str(place)}).farm
    assert f"{place}:{place}:ro" not in make_plan(farm).command
    place.mkdir()
    assert f"{place}:{place}:ro" in make_plan(farm).command


def test_without_models_deploy_says_setup_which_brings_the_packages_too(tmp_path):
    env = {"EXATRKX_HPC_RUN_ROOT": str(tmp_path / "runs"), "EXATRKX_HPC_SERVER_PYTHON_ENVIRONMENT": str(tmp_path / "e")}
    said = complaint(exatrkx_hpc("deploy", "--trust-run-root", cwd=tmp_path, env=env), 7)
    assert said.endswith("does not exist; create it and its packages with 'exatrkx-hpc setup'")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('["3.10", "/usr/bin/python3.10"]\n', "3.10"),
        ('== Triton ==\n\nNVIDIA Release 24.10\n["3.12", "/usr/bin/python3.12"]\n', "3.12"),
        ("", None),
        ("Python 3.10.12", None),
        ("{}", None),
        ("3", None),
    ],
)
def test_an_image_may_print_a_banner_before_its_answer(said, version):
    found = read_answer(said)
    assert (found.version if found else None) == version
