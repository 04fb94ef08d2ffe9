"""What `setup` builds for a farm: the models of its device, for the GPUs that each of its servers has."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.config.schema import ClientsSection, Farm
from exatrkx_hpc.models.repository import read_models
from exatrkx_hpc.prepare import build_models, gpus_of_server, require_models


def farm(folder: Path, *, gpus_per_node: int, **server: object) -> Farm:
    return Farm.model_validate(
        {
            "name": "farm",
            "run_root": str(folder / "runs"),
            "cluster": {"scheduler": "slurm"},
            "job": {"gpus_per_node": gpus_per_node},
            "server": {"engine": "none", "model_repository": str(folder / "models"), **server},
        }
    )


@pytest.mark.parametrize(
    ("server", "gpus"),
    [
        ({"device": "gpu"}, 4),
        ({"device": "gpu", "gpus_per_server": 2}, 2),
        ({"device": "gpu", "servers_per_node": 4, "gpus_per_server": 1}, 1),
        ({"device": "cpu"}, 1),
    ],
)
def test_the_default_models_use_all_gpus_of_a_server(tmp_path: Path, server: dict, gpus: int) -> None:
    what, lines = farm(tmp_path, gpus_per_node=4, instances=2, **server), []
    build_models(what, lines.append)
    groups = {model.name: model.config.instance_group for model in read_models(tmp_path / "models")}
    assert groups["exatrkx_fused"][0].count == 2
    assert {groups[name][0].count for name in ("frnn", "applyfilter", "wcc")} == {2 * gpus}
    assert str(lines[0]) == f"models: building {tmp_path}/models for {server['device']}, 2 instances of each"


def test_a_repository_that_is_missing_is_made_with_the_words_that_the_message_names(tmp_path: Path) -> None:
    what = farm(tmp_path, gpus_per_node=4, device="gpu")
    assert gpus_of_server(what) == 4
    with pytest.raises(Exception, match=r"models build --device gpu --instances 1 --gpus 4 --out .*/models'"):
        require_models(what, lambda line: None)


@pytest.mark.parametrize(
    ("clients", "model"),
    [
        ({"model": "traccc-cpu"}, "traccc-cpu"),
        ({"workload": "traccc"}, "traccc-cpu"),
        ({"model": "traccc-gpu"}, "traccc-gpu"),
        ({"workload": "itk", "workloads": "own"}, "traccc-gpu"),
    ],
)
def test_a_farm_of_traccc_has_the_model_that_its_clients_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: dict, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    made = 'traccc_workload("itk", model="traccc-gpu")'
    (tmp_path / "own" / "itk.py").write_text(f"from exatrkx_hpc import traccc_workload\nWORKLOAD = {made}\n")
    what = farm(tmp_path, gpus_per_node=4, device="gpu", instances=2).model_copy(
        update={"clients": ClientsSection.model_validate(clients)}
    )
    with pytest.raises(ModelError, match=f"models build --model {model} --device gpu --instances 2 --gpus 4 --out"):
        require_models(what, lambda line: None)
    build_models(what, lambda line: None)
    (made,) = read_models(tmp_path / "models")
    assert (made.name, made.config.instance_group[0].count) == (model, 8 if model == "traccc-cpu" else 2)
