"""`build` writes a specialised copy that is whole, and replaces only what it wrote itself."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import exatrkx_hpc
from repositories import small_repository
from triton_helper import running_triton
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError, ModelError, OutputError
from exatrkx_hpc.models.build import MARK, build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.pack_env import MANIFEST
from exatrkx_hpc.models.pipeline import load_tracker
from exatrkx_hpc.models.repository import CONFIG, ENVIRONMENT, Model, read_config, read_models
from exatrkx_hpc.tracking.scoring.agreement import same_partition
from exatrkx_hpc.tracking.simulation.synthetic import generate_event, hits_text
from exatrkx_hpc.work.inference.probe import ask_model

SHIPPED = asset("model_repos/exatrkx")
NETWORKS = {"embed", "filter", "gnn"}
STAGES = {"frnn", "applyfilter", "wcc"}
FUSED = {"exatrkx_fused"}


def _built(out: Path, **settings) -> dict[str, Model]:
    build(SHIPPED, out, **settings)
    return {model.name: model for model in read_models(out)}


def _groups(models: dict[str, Model]) -> dict[str, list[tuple[str, int]]]:
    return {
        name: [(ModelInstanceGroup.Kind.Name(group.kind), group.count) for group in model.config.instance_group]
        for name, model in models.items()
    }


def _each(names: set[str], kind: str, count: int) -> dict[str, list[tuple[str, int]]]:
    return {name: [(kind, count)] for name in names}


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_on_cpu_everything_runs_in_python_on_the_cpu(tmp_path: Path) -> None:
    models = _built(tmp_path / "out", device="cpu", instances=3, threads=2)
    assert _groups(models) == {"exatrkx": []} | _each(NETWORKS | STAGES | FUSED, "KIND_CPU", 3)
    assert {models[name].backend for name in NETWORKS | STAGES | FUSED} == {"python"}
    for name in NETWORKS:
        assert models[name].parameters["threads"] == "2"
        assert models[name].files_needed() == ("model.py", "model.pt")
        assert "TorchScriptStage" in (models[name].folder / "1/model.py").read_text()
        assert (models[name].folder / "1/model.pt").read_bytes() == (SHIPPED / name / "1/model.pt").read_bytes()


def test_on_gpu_the_networks_stay_on_the_pytorch_backend(tmp_path: Path) -> None:
    models = _built(tmp_path / "out", device="gpu", instances=2)
    expected = _each(NETWORKS | FUSED, "KIND_GPU", 2) | _each(STAGES, "KIND_CPU", 2)
    assert _groups(models) == {"exatrkx": []} | expected
    assert {models[name].backend for name in NETWORKS} == {"pytorch"}
    assert not any((models[name].folder / "1/model.py").exists() for name in NETWORKS)


def test_each_gpu_gets_instances_of_the_stages_on_the_cpu_too(tmp_path: Path) -> None:
    models = _built(tmp_path / "out", device="gpu", instances=2, gpus=4)
    expected = _each(NETWORKS | FUSED, "KIND_GPU", 2) | _each(STAGES, "KIND_CPU", 8)
    assert _groups(models) == {"exatrkx": []} | expected
    models = _built(tmp_path / "out", device="cpu", instances=2, gpus=4)
    assert _groups(models) == {"exatrkx": []} | _each(NETWORKS | STAGES | FUSED, "KIND_CPU", 2)


def test_networks_on_a_gpu_are_warm_when_they_are_ready_and_compile_nothing_for_a_shape(tmp_path: Path) -> None:
    models = _built(tmp_path / "out", device="gpu")
    for name in NETWORKS:
        assert models[name].parameters["ENABLE_TENSOR_FUSER"] == "false"
        inputs = {entry.name: list(entry.dims) for entry in models[name].config.input}
        assert [sample.count for sample in models[name].config.model_warmup] == [2, 2, 2]
        for sample in models[name].config.model_warmup:
            assert sample.inputs.keys() == inputs.keys()
            for tensor, value in sample.inputs.items():
                assert all(there in (-1, size) for there, size in zip(inputs[tensor], value.dims, strict=True))
                assert value.zero_data  # random numbers are no hit numbers
    assert not any(model.config.model_warmup for model in _built(tmp_path / "out", device="cpu").values())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_tensors_steps_and_constants_are_untouched(tmp_path: Path, device: str) -> None:
    models = _built(tmp_path / "out", device=device, instances=2, fused=True)
    for source in read_models(SHIPPED):
        copy = models[source.name].config
        assert list(copy.input) == list(source.config.input)
        assert list(copy.output) == list(source.config.output)
        assert copy.ensemble_scheduling == source.config.ensemble_scheduling
        assert source.parameters.items() <= models[source.name].parameters.items()


@pytest.mark.parametrize(("device", "users"), [("cpu", NETWORKS | STAGES | FUSED), ("gpu", STAGES | FUSED)])
def test_the_environment_goes_to_every_python_model(tmp_path: Path, device: str, users: set[str]) -> None:
    environment = tmp_path / "a venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("")
    models = _built(tmp_path / "out", device=device, environment=environment)
    stated = {name: model.parameters.get(ENVIRONMENT) for name, model in models.items()}
    assert {name for name, value in stated.items() if value} == users
    assert {value for value in stated.values() if value} == {str(environment)}


def test_a_build_is_safe_to_repeat(tmp_path: Path) -> None:
    out = tmp_path / "a'; echo foo" / "out"
    _built(out, device="cpu", instances=1)
    first = _content(out)
    (out / "left-over").mkdir()
    _built(out, device="cpu", instances=1)
    assert _content(out) == first
    assert not (out / "left-over").exists()
    _built(out, device="gpu", instances=1)
    assert _content(out) != first
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_built_repository_is_a_source_too(tmp_path: Path) -> None:
    build(SHIPPED, tmp_path / "one", device="cpu", instances=1)
    build(tmp_path / "one", tmp_path / "two", device="cpu", instances=4)
    models = {model.name: model for model in read_models(tmp_path / "two")}
    assert _groups(models)["gnn"] == [("KIND_CPU", 4)]


def test_a_build_for_the_cpu_is_no_source_for_the_gpu(tmp_path: Path) -> None:
    build(SHIPPED, tmp_path / "one", device="cpu")
    with pytest.raises(ModelError, match="embed is already built for the CPU"):
        build(tmp_path / "one", tmp_path / "two", device="gpu")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_source_is_not_changed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SHIPPED, source)
    before = _content(source)
    build(source, tmp_path / "out", device="cpu", instances=2)
    assert _content(source) == before


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="was not built by exatrkx-hpc"):
        build(SHIPPED, out, device="cpu")
    assert (out / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ModelError, match="was not built by exatrkx-hpc"):
        build(SHIPPED, tmp_path / "out", device="cpu")


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out"])
def test_a_place_that_cannot_be_is_named_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"{place} cannot be written: [A-Z][a-z ]+; check permissions") as caught:
        build(SHIPPED, tmp_path / place, device="cpu")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, largest[1]))
    try:
        with pytest.raises(
            OutputError, match=r"out cannot be written: \[?.*File too large.*; check permissions"
        ) as caught:
            build(SHIPPED, tmp_path / "out", device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(SHIPPED, tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / MARK).is_file()


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    build(SHIPPED, tmp_path / "one", device="cpu")
    for out in (tmp_path / "one", tmp_path / "one" / "deeper", tmp_path):
        with pytest.raises(ModelError, match="is inside"):
            build(tmp_path / "one", out, device="cpu")
    assert (tmp_path / "one" / MARK).is_file()


def test_a_fault_of_the_source_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SHIPPED, source)
    (source / "gnn/1/model.pt").unlink()
    with pytest.raises(ModelError, match=r"gnn: 1/model\.pt is missing"):
        build(source, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "tpu"}, "device is 'tpu'; use 'cpu' or 'gpu'"),
        ({"device": "cpu", "instances": 0}, "instances is 0; use 1 or more"),
        ({"device": "gpu", "gpus": 0}, "gpus is 0; use 1 or more"),
        ({"device": "cpu", "threads": -1}, "threads is -1; use 1 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(SHIPPED, tmp_path / "out", **settings)


def test_an_environment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"environment .* does not exist"):
        build(SHIPPED, tmp_path / "out", device="cpu", environment=tmp_path / "venv")


@pytest.mark.parametrize(
    "code",
    [
        "import cupy as cp\n",
        "import numpy, cudf\n",
        "from cugraph.components import connected_components\n",
        "class TritonPythonModel:\n    def initialize(self, args):\n        import cupy\n",
        "import importlib\ncupy = importlib.import_module('cupy')\n",
        "from numba import cuda\n",
        "try:\n    import cupy\nexcept KeyError:\n    pass\n",
        "import torch\nnetwork = torch.nn.Linear(1, 1).cuda()\n",
    ],
)
def test_code_that_wants_a_gpu_is_not_built_for_a_cpu(tmp_path: Path, code: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(SHIPPED, source)
    for place in ("wcc/1/model.py", "wcc/1/kernels/more.py"):
        (source / place).parent.mkdir(exist_ok=True)
        (source / place).write_text(code)
        with pytest.raises(
            ModelError, match=rf"^wcc needs a GPU: {place.removeprefix('wcc/')} line \d+ (imports|calls)"
        ):
            build(source, tmp_path / "out", device="cpu")
        assert not (tmp_path / "out").exists()
        shutil.copy(SHIPPED / "wcc/1/model.py", source / "wcc/1/model.py")
    build(source, tmp_path / "gpu", device="gpu")


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    import cupy\nexcept ImportError:\n    cupy = None\n",
        "import torch\nif torch.cuda.is_available():\n    import cupy\n",
        "# import cupy\nTEXT = 'import cudf'\n",
        "import cupboard\n",
    ],
)
def test_code_that_can_do_without_a_gpu_is(tmp_path: Path, code: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(SHIPPED, source)
    (source / "wcc/1/model.py").write_text(code)
    build(source, tmp_path / "out", device="cpu")


def test_the_fused_model_is_served_under_further_names(tmp_path: Path) -> None:
    both = build(SHIPPED, tmp_path / "both", device="cpu", names=("exatrkxcpu", "exatrkxgpu", "exatrkxcpu"))
    assert {"exatrkx_fused", "exatrkxcpu", "exatrkxgpu"} <= set(both.models) and check(both.path) == ()
    config = read_config(both.path / "exatrkxcpu" / CONFIG)
    assert (config.name, config.parameters["networks"].string_value) == ("exatrkxcpu", "..")
    assert [(entry.name, list(entry.dims)) for entry in config.input] == [("FEATURES", [-1, 3])]
    assert [(entry.name, list(entry.dims)) for entry in config.output] == [("LABELS", [-1])]
    alone = build(SHIPPED, tmp_path / "alone", device="gpu", fused=False, names=("exatrkxgpu",))
    assert "exatrkxgpu" in alone.models and "exatrkx_fused" not in alone.models and check(alone.path) == ()
    group = read_config(alone.path / "exatrkxgpu" / CONFIG).instance_group[0]
    assert group.kind == group.KIND_GPU


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exatrkx", "already has a model of this name"),
        ("a/b", "use letters, digits"),
        ("..", "use letters, digits"),
        ("", "use letters, digits"),
        ("a b", "use letters, digits"),
    ],
)
def test_a_further_name_that_cannot_be_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(SHIPPED, tmp_path / "out", device="cpu", names=(name,))
    assert list(tmp_path.iterdir()) == []


def test_a_repository_without_a_fused_model_has_nothing_to_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the repository has no fused model"):
        build(small_repository(tmp_path / "small"), tmp_path / "out", device="cpu", names=("exatrkxcpu",))


@pytest.mark.triton
def test_a_client_of_the_public_backend_gets_its_labels(tmp_path: Path) -> None:
    done = exatrkx_hpc("models", "build", "--device", "cpu", "--as", "exatrkxcpu", "--out", "models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    event = generate_event(np.random.default_rng(3), n_tracks=20)
    (tmp_path / "event.csv").write_text(hits_text(event))
    options = ("--model-control-mode=explicit", "--load-model=exatrkxcpu")
    with running_triton(tmp_path / "models", tmp_path, options=options) as server:
        asked = ask_model(server.grpc, "exatrkxcpu", [str(tmp_path / "event.csv")])
    assert same_partition(asked.values["LABELS"], load_tracker(tmp_path / "models")(event.hits))


def test_a_packed_environment_need_not_have_what_the_build_leaves_out(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("")
    (environment / MANIFEST).write_text(json.dumps({"packages": {"numpy": "1.26.4", "scipy": "1.11"}}))
    source = asset("model_repos/exatrkx")
    done = build(source, tmp_path / "plain", device="gpu", fused=False, environment=environment)
    assert check(done.path) == ()
    whole = build(source, tmp_path / "whole", device="gpu", environment=environment)
    assert {finding.model for finding in check(whole.path)} == {"exatrkx_fused"}
