"""`check` finds what Triton would refuse, and finds nothing in what we ship and build."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from command import complaint, exatrkx_hpc
from repositories import BREAKS, Break, edit, small_repository
from triton_helper import RunningTriton, running_triton
from tritonclient.grpc.model_config_pb2 import ModelConfig

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import InputError, ModelError
from exatrkx_hpc.base.files import is_lfs_pointer
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.pipeline import pipeline_digest
from exatrkx_hpc.models.repository import CONFIG, read_config, write_config
from exatrkx_hpc.work.events.source import read_event

REFUSED = [broken for broken in BREAKS if broken.triton is not None]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return small_repository(tmp_path / "repository")


def test_the_shipped_repository_has_no_finding() -> None:
    assert check(asset("model_repos/exatrkx")) == ()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_built_repository_has_no_finding(tmp_path: Path, device: str) -> None:
    built = build(asset("model_repos/exatrkx"), tmp_path / "out", device=device, instances=2)
    assert check(built.path) == ()


def test_the_small_repository_has_no_finding(repository: Path) -> None:
    assert check(repository) == ()


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_one_break_is_one_finding_that_names_it(repository: Path, broken: Break) -> None:
    broken.apply(repository)
    findings = [finding for finding in check(repository) if broken.says in finding.what]
    assert [finding.model for finding in findings] == [broken.model]
    assert findings[0].remedy


@pytest.fixture(scope="module")
def explicit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningTriton, Path]]:
    """A server that loads only what it is told to, from a folder that is empty at first."""
    work_dir = tmp_path_factory.mktemp("explicit")
    models = work_dir / "models"
    models.mkdir()
    options = ("--model-control-mode=explicit",)
    with running_triton(models, work_dir, options=options) as server:
        yield server, models


@pytest.mark.triton
@pytest.mark.parametrize("broken", REFUSED, ids=lambda broken: broken.name)
def test_triton_refuses_it_too(explicit_server: tuple[RunningTriton, Path], broken: Break) -> None:
    server, models = explicit_server
    small_repository(models)
    log_before = server.log.stat().st_size
    try:
        broken.apply(models)
        answer = requests.post(f"{server.http}/v2/repository/models/{broken.model}/load", timeout=60)
        said = server.log.read_bytes()[log_before:].decode(errors="replace") + answer.text
        assert answer.status_code >= 400, said
        assert broken.triton is not None and broken.triton in said
    finally:
        for name in ("pair", "frnn", "applyfilter"):
            requests.post(f"{server.http}/v2/repository/models/{name}/unload", timeout=60)
            shutil.rmtree(models / name, ignore_errors=True)


@pytest.mark.parametrize("network", ["embed", "filter", "gnn"])
@pytest.mark.parametrize("device", [None, "cpu", "gpu"])
def test_a_missing_weight_is_found(tmp_path: Path, network: str, device: str | None) -> None:
    copy = tmp_path / "copy"
    if device is None:
        shutil.copytree(asset("model_repos/exatrkx"), copy)
    else:
        build(asset("model_repos/exatrkx"), copy, device=device)
    (copy / network / "1" / "model.pt").unlink()
    (finding,) = check(copy)
    assert (finding.model, finding.what) == (network, "1/model.pt is missing")
    assert "models train" in finding.remedy


def test_wildcards_meet_any_size(repository: Path) -> None:
    edit(repository, "pair", lambda config: config.input[0].dims.__setitem__(1, -1))
    assert check(repository) == ()


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(asset("model_repos/exatrkx"), copy)
    edit(copy, "exatrkx", lambda config: config.ensemble_scheduling.step[-1].input_map.pop("INPUT2"))
    assert check(copy) == ()


def test_only_the_versions_that_triton_serves_are_looked_at(repository: Path) -> None:
    (repository / "frnn/1").rename(repository / "frnn/3")
    (repository / "frnn/2").mkdir()
    assert check(repository) == ()
    edit(repository, "frnn", lambda config: config.version_policy.all.SetInParent())
    assert [finding.what for finding in check(repository)] == ["2/model.py is missing"]
    edit(repository, "frnn", lambda config: config.version_policy.specific.versions.append(3))
    assert check(repository) == ()


def test_a_broken_member_is_no_fault_of_its_ensemble(repository: Path) -> None:
    (repository / "frnn" / CONFIG).write_bytes(b"\xff\xfe")
    assert [(finding.model, "is not text" in finding.what) for finding in check(repository)] == [("frnn", True)]


def test_several_faults_are_all_found(repository: Path) -> None:
    config = read_config(repository / "frnn" / CONFIG)
    config.name = "other"
    write_config(repository / "frnn" / CONFIG, config)
    (repository / "applyfilter/1/model.py").unlink()
    assert [finding.model for finding in check(repository)] == ["applyfilter", "frnn"]


@pytest.mark.parametrize("make", [False, True])
def test_what_is_no_repository_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ModelError, match="is not a model repository"):
        check(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gnn", "1/model.pt"),
        ("wcc", "1/model.py"),
        ("wcc", "1/beside/constants.npy"),
        ("embed", "libextra.so"),
        ("exatrkx", "config.pbtxt"),
    ],
)
def test_a_git_lfs_pointer_is_a_finding_in_every_place(tmp_path: Path, model: str, name: str) -> None:
    repository = Path(shutil.copytree(asset("model_repos/exatrkx"), tmp_path / "models"))
    (repository / model / name).parent.mkdir(exist_ok=True)
    (repository / model / name).write_text(POINTER)
    (finding,) = check(repository)
    assert finding.model == model and f"{name} is a Git LFS pointer" in finding.what
    assert finding.remedy == "fetch its content with 'git lfs pull'"
    with pytest.raises(ModelError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        build(repository, tmp_path / "out", device="cpu")


def test_a_git_lfs_pointer_is_told_wherever_a_weight_or_an_event_is_read(tmp_path: Path) -> None:
    torch_script = pytest.importorskip("exatrkx_hpc.models.torchscript")
    inference = pytest.importorskip("exatrkx_hpc.tracking.inference")
    repository = Path(shutil.copytree(asset("model_repos/exatrkx"), tmp_path / "models"))
    weight = repository / "filter/1/model.pt"
    weight.write_text(POINTER)
    for read in (
        lambda: torch_script.load_torchscript("filter", weight),
        lambda: inference.load_network(weight),
        lambda: pipeline_digest(repository),
    ):
        with pytest.raises((ModelError, ValueError), match=r"model\.pt is a Git LFS pointer.*git lfs pull"):
            read()
    for form in ("csv", "npy", "npz"):
        event = tmp_path / f"event.{form}"
        event.write_text(POINTER)
        with pytest.raises(InputError, match=rf"event\.{form} is a Git LFS pointer.*git lfs pull"):
            read_event(event)
    packed = tmp_path / "env.tar.gz"
    packed.write_text(POINTER)
    edit(small_repository(tmp_path / "small"), "frnn", lambda config: _environment(config, packed))
    (finding,) = check(tmp_path / "small")
    assert f"the Python environment {packed} is a Git LFS pointer" in finding.what


def _environment(config: ModelConfig, path: Path) -> None:
    config.parameters["EXECUTION_ENV_PATH"].string_value = str(path)


def test_an_empty_file_and_a_file_about_pointers_are_none(tmp_path: Path) -> None:
    for text in ("", "version", "# version https://git-lfs.github.com/spec/v1"):
        (tmp_path / "file").write_text(text)
        assert not is_lfs_pointer(tmp_path / "file")
    assert not is_lfs_pointer(tmp_path) and not is_lfs_pointer(tmp_path / "missing")


def environment_in(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/activate").write_text("")
    return folder


@pytest.mark.parametrize("stated", ["/opt/env", "/opt/env/deeper/venv", "/opt"])
def test_an_environment_is_looked_for_through_the_mounts(tmp_path: Path, stated: str) -> None:
    repository = small_repository(tmp_path / "models")
    edit(repository, "frnn", lambda config: _environment(config, Path(stated)))
    (finding,) = check(repository)
    assert f"the Python environment {stated} does not exist" in finding.what or "has no bin/activate" in finding.what
    assert check(repository, places=()) == (), "a path of the image was looked for here"
    host = tmp_path / "host"
    places = (("/nowhere", "/op"), (str(tmp_path / "other"), "/"), (str(host), stated))
    (finding,) = check(repository, places=places)
    assert finding.what == f"the Python environment {host} does not exist" and "server.mounts" in finding.remedy
    environment_in(host)
    assert check(repository, places=places) == ()


def test_the_environment_is_replaced_before_it_is_looked_for(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "models")
    edit(repository, "frnn", lambda config: _environment(config, Path("/nowhere/venv")))
    fresh = environment_in(tmp_path / "venv")
    assert check(repository, environment=fresh) == ()
    built = build(repository, tmp_path / "built", device="cpu", environment=fresh)
    stated = read_config(built.path / "frnn" / CONFIG).parameters["EXECUTION_ENV_PATH"].string_value
    assert stated == str(fresh) and check(built.path) == ()
    inside = build(repository, tmp_path / "inside", device="cpu", environment=Path("/opt/env"), places=())
    assert check(inside.path, places=()) == ()
    with pytest.raises(ModelError, match=r"environment .*/typo does not exist"):
        build(repository, tmp_path / "typo-built", device="cpu", environment=Path("typo"), places=())


def test_the_networks_of_a_fused_model_are_looked_for_through_the_mounts(tmp_path: Path) -> None:
    shipped, repository = asset("model_repos/exatrkx"), tmp_path / "models"
    shutil.copytree(shipped / "exatrkx_fused", repository / "exatrkx_fused")
    edit(repository, "exatrkx_fused", lambda config: _networks(config, "/models/networks"))
    assert len(check(repository)) == 3
    assert check(repository, places=()) == ()
    assert check(repository, places=((str(shipped), "/models/networks"),)) == ()
    assert len(check(repository, places=((str(tmp_path), "/models"),))) == 3


def _networks(config: ModelConfig, folder: str) -> None:
    config.parameters["networks"].string_value = folder


def test_the_command_knows_the_farm_and_its_mounts(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "models")
    edit(repository, "frnn", lambda config: _environment(config, Path("/opt/env")))
    said = exatrkx_hpc("models", "check", "models", cwd=tmp_path)
    assert said.returncode == 7 and "set server.image and server.mounts in farm.toml" in said.stdout
    farm = 'site = "local"\n[server]\nengine = "podman"\nimage = "docker.io/site/triton:1"\n'
    (tmp_path / "farm.toml").write_text(farm)
    assert exatrkx_hpc("models", "check", "models", cwd=tmp_path).returncode == 0
    (tmp_path / "farm.toml").write_text(f'{farm}mounts = ["{tmp_path}/env:/opt/env"]\n')
    said = exatrkx_hpc("models", "check", "models", cwd=tmp_path)
    assert said.returncode == 7 and f"the Python environment {tmp_path}/env does not exist" in said.stdout
    built = exatrkx_hpc("models", "build", "--source", "models", "--device", "cpu", "--out", "b", cwd=tmp_path)
    assert "does not exist" in complaint(built, 7)
    environment_in(tmp_path / "env")
    assert exatrkx_hpc("models", "check", "models", cwd=tmp_path).returncode == 0
