"""The shipped repository keeps the public service's contract; configs survive a read and a write."""

from __future__ import annotations

from pathlib import Path

import pytest
from repositories import CONTRACT
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.repository import CONFIG, Model, read_config, read_models, write_config
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS
from exatrkx_hpc.tracking.parameters import settings_of


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {model.name: model for model in read_models(asset("model_repos/exatrkx"))}


def _tensors(model: Model) -> tuple[str, ...]:
    def words(entry, optional: bool) -> str:
        kind = DataType.Name(entry.data_type).removeprefix("TYPE_")
        return f"{entry.name} {kind} {list(entry.dims)}" + (" optional" if optional else "")

    inputs = [words(entry, entry.optional) for entry in model.config.input]
    return (*inputs, *(words(entry, False) for entry in model.config.output))


def test_tensors_are_those_of_the_public_service(models: dict[str, Model]) -> None:
    assert {name: _tensors(model) for name, model in models.items()} == CONTRACT


def test_nothing_is_batched(models: dict[str, Model]) -> None:
    assert {model.config.max_batch_size for model in models.values()} == {0}


def test_it_is_right_for_a_gpu_site_as_it_stands(models: dict[str, Model]) -> None:
    kinds = {
        name: (model.backend, ModelInstanceGroup.Kind.Name(model.config.instance_group[0].kind))
        for name, model in models.items()
        if not model.is_ensemble
    }
    networks = dict.fromkeys(("embed", "filter", "gnn"), ("pytorch", "KIND_GPU"))
    stages = dict.fromkeys(("frnn", "applyfilter", "wcc"), ("python", "KIND_CPU"))
    assert kinds == networks | stages | {"exatrkx_fused": ("python", "KIND_GPU")}
    assert models["exatrkx"].is_ensemble


def test_constants_are_those_of_the_package(models: dict[str, Model]) -> None:
    assert float(models["frnn"].parameters["radius"]) == DEFAULT_SETTINGS.radius
    assert int(models["frnn"].parameters["max_neighbours"]) == DEFAULT_SETTINGS.max_neighbours
    assert float(models["applyfilter"].parameters["cut"]) == DEFAULT_SETTINGS.filter_cut
    assert float(models["wcc"].parameters["cut"]) == DEFAULT_SETTINGS.gnn_cut
    assert settings_of(models["exatrkx_fused"].parameters) == DEFAULT_SETTINGS


def test_every_version_folder_survives_a_git_checkout(models: dict[str, Model]) -> None:
    assert all(any((model.folder / "1").iterdir()) for model in models.values())


def test_a_config_survives_a_write_and_a_read(tmp_path: Path, models: dict[str, Model]) -> None:
    for model in models.values():
        write_config(tmp_path / CONFIG, model.config)
        assert read_config(tmp_path / CONFIG) == model.config


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'name: "a', "is not a Triton model configuration: 1:"),
        (b"max_batch_size: many", "is not a Triton model configuration: 1:17"),
        (b"\xff\xfe\x00", "is not text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_unreadable_config_is_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / CONFIG
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_config(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_version_folders_are_whole_numbers_from_one(tmp_path: Path, models: dict[str, Model]) -> None:
    for name in ("10", "9", "0", "01", "first", "-1", ".2"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert Model(folder=tmp_path, config=models["frnn"].config).versions() == (9, 10)
