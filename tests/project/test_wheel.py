"""The wheel, installed alone in an empty environment, does what the checkout does."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc import __version__
from exatrkx_hpc.base.process import Completed, run

#: Installing waits for a package registry.
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
FOLDERS = ("jobs", "nginx", "prometheus", "grafana", "model_repos")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built as a release would be."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the tests do not stand in a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    found = run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder / "x"), "hatchling"])
    if found.returncode:
        pytest.skip(f"no package registry: {found.complaint}")
    done = run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The exatrkx-hpc of an environment that holds the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    python = str(folder / "bin" / "python")
    assert run([sys.executable, "-m", "venv", "--without-pip", str(folder)]).returncode == 0
    install = ["install", "--quiet", "--no-compile", "--disable-pip-version-check", str(wheel)]
    done = run([sys.executable, "-m", "pip", "--python", python, *install], timeout=500)
    assert done.returncode == 0, done.stderr
    return str(folder / "bin" / "exatrkx-hpc")


@pytest.fixture
def call(command: str, tmp_path: Path):
    """Call the installed command from an empty folder; nothing of this process's environment helps it."""

    def _call(*arguments: str, **variables: str) -> Completed:
        environment = {"PATH": os.defpath, "HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "error", **variables}
        done = run([command, *arguments], env=environment, cwd=tmp_path)
        assert list(tmp_path.iterdir()) == [], "it left something in the folder"
        return done

    return _call


def test_the_shipped_folders_travel_in_the_wheel_whole_and_nothing_else_does(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = run(["git", "ls-files", "-z", *FOLDERS], cwd=ROOT)
    if shipped.returncode == 0:
        wanted = {f"exatrkx_hpc/_assets/{name}" for name in shipped.stdout.split("\0")[:-1] if (ROOT / name).exists()}
    else:  # a source tree without git
        files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted = {f"exatrkx_hpc/_assets/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    assert wanted <= names
    assert {name.split("/")[2] for name in names if name.startswith("exatrkx_hpc/_assets/")} == set(FOLDERS)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "docs/"))]


def test_the_weights_travel_in_the_wheel(wheel: Path):
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    for model in ("embed", "filter", "gnn"):
        assert sizes[f"exatrkx_hpc/_assets/model_repos/exatrkx/{model}/1/model.pt"] > 10_000
    for site in ("generic", "local", "perlmutter"):
        assert f"exatrkx_hpc/config/sites/{site}.toml" in sizes
    assert sizes["exatrkx_hpc/page/page.html.j2"]


def test_the_version_is_that_of_the_package_and_its_types_travel(wheel: Path, call):
    assert wheel.name == f"exatrkx_hpc-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as held:
        metadata = held.read(f"exatrkx_hpc-{__version__}.dist-info/METADATA").decode()
        assert "exatrkx_hpc/py.typed" in held.namelist()
    assert f"\nVersion: {__version__}\n" in metadata
    assert call("--version").stdout == f"exatrkx-hpc {__version__}\n"


def test_help_is_there_for_every_command(call):
    done = call("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("demo", "init", "deploy", "monitor", "run-clients", "metrics", "stop", "models", "events", "config"):
        assert f"  {name}  " in done.stdout, name
        assert call(name, "--help").returncode == 0


def test_config_show_names_every_source(call):
    done = call("config", "show", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["balancer.host"] == {"value": "internal", "source": "profile generic"}


@pytest.mark.parametrize("site", ["generic", "perlmutter"])
def test_a_dry_run_prints_the_script_and_submits_nothing(call, site: str):
    done = call("deploy", "--dry-run", "--site", site, "-N", "4", SCRATCH="/scratch/me")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("#!/usr/bin/env bash\n")
    assert "\n#SBATCH --nodes=4\n" in done.stdout
    assert run(["bash", "-n", "/dev/stdin"], stdin=done.stdout).returncode == 0


def test_a_missing_extra_is_one_line_that_names_it(call):
    done = call("deploy", "--dry-run", "--site", "local")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "exatrkx-hpc: the embedded Triton is not installed; pip install 'exatrkx-hpc[local]'\n"


def test_it_comes_as_far_as_slurm(call, tmp_path_factory: pytest.TempPathFactory):
    runs = tmp_path_factory.mktemp("runs")
    done = call("models", "build", "--device", "gpu", "--out", str(runs / "model_repository"))
    assert done.returncode == 0, done.stderr
    # Where a real Slurm is, it must not be found.
    done = call("deploy", "--site", "generic", "--run-root", str(runs), PATH="/nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("exatrkx-hpc: sbatch is not on PATH; ") and done.stderr.count("\n") == 1
    assert not (runs / "python").exists(), "a refused deploy leaves nothing"
    done = call("setup", "--site", "generic", "--run-root", str(runs), "--trust-run-root")
    assert done.returncode == 0, done.stderr
    assert (runs / "python" / __version__ / "exatrkx_hpc" / "tracking" / "frnn.py").is_file()
