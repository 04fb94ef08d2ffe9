"""`models build` for traccc: the twin alone, in either contract, and the backend of a site on its GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cell_models import TWIN
from command import exatrkx_hpc
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from exatrkx_hpc.base.errors import ConfigError, ModelError
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.pack_env import MANIFEST
from exatrkx_hpc.models.repository import CONFIG, Model, read_config, read_models

SHIPPED = TWIN.parent


def built(out: Path, **settings: object) -> dict[str, Model]:
    build(SHIPPED, out, **settings)
    return {model.name: model for model in read_models(out)}


def groups(model: Model) -> list[tuple[str, int, list[int]]]:
    kinds = ModelInstanceGroup.Kind
    return [(kinds.Name(one.kind), one.count, list(one.gpus)) for one in model.config.instance_group]


def test_the_command_builds_the_twin_alone_for_the_cpu(tmp_path: Path) -> None:
    done = exatrkx_hpc(
        "models", "build", "--model", "traccc-cpu", "--instances", "3", "--out", "out", "--json", cwd=tmp_path
    )
    facts = json.loads(done.stdout)
    assert (facts["models"], facts["device"], facts["instances"]) == (["traccc-cpu"], "cpu", 3)
    (model,) = read_models(tmp_path / "out")
    assert groups(model) == [("KIND_CPU", 3, [])]
    assert list(model.config.input) == list(read_config(TWIN / CONFIG).input)
    assert check(tmp_path / "out") == ()
    wrong = exatrkx_hpc("models", "build", "--model", "traccc", "--out", "new", cwd=tmp_path)
    assert wrong.returncode == 2 and "the repository has no model 'traccc'; its models are applyfilter" in wrong.stderr
    assert not (tmp_path / "new").exists()


def test_the_twin_takes_the_raw_buffer_if_it_is_told_so(tmp_path: Path) -> None:
    models = built(tmp_path / "out", device="cpu", only=["traccc-cpu"], contract="raw")
    assert [(entry.name, list(entry.dims)) for entry in models["traccc-cpu"].config.input] == [("CELLS", [-1])]
    with pytest.raises(ConfigError, match="--contract raw applies to traccc-cpu only, not to traccc-gpu; omit"):
        built(tmp_path / "out", device="gpu", only=["traccc-gpu"], contract="raw")


def test_the_backend_of_a_site_has_its_instances_on_every_gpu(tmp_path: Path) -> None:
    source = tmp_path / "source" / "traccc-gpu"
    (source / "1").mkdir(parents=True)
    public = (SHIPPED / "traccc-gpu" / CONFIG).read_text().replace("kind: KIND_GPU", "kind: KIND_GPU gpus: [0]")
    (source / CONFIG).write_text(public)
    assert groups(Model(folder=source, config=read_config(source / CONFIG))) == [("KIND_GPU", 1, [0])]
    build(source.parent, tmp_path / "out", device="gpu", instances=4, gpus=4)
    (model,) = read_models(tmp_path / "out")
    assert groups(model) == [("KIND_GPU", 4, [])], "without a list, each GPU that the server sees"
    assert model.backend == "traccc"
    with pytest.raises(ModelError, match="traccc-gpu needs a GPU: its backend 'traccc' has instances of KIND_GPU; bui"):
        built(tmp_path / "other", device="cpu", only=["traccc-gpu"])


def test_an_environment_without_pyacts_is_found(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("")
    (environment / MANIFEST).write_text(json.dumps({"packages": {"numpy": "1.26.4"}}))
    built(tmp_path / "out", device="cpu", only=["traccc-cpu"], environment=environment)
    (finding,) = check(tmp_path / "out")
    assert (finding.model, finding.remedy) == ("traccc-cpu", "pack it with --package pyacts")
