"""What a model's code does is told from its text; of our own stages the text here must say what they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.models.code import READS, reads, stage_of
from exatrkx_hpc.models.repository import read_model
from exatrkx_hpc.tracking import serving, serving_fused

SHIPPED = asset("model_repos/exatrkx")


class Asked(dict[str, str]):
    """Parameters that keep which of them were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("name", READS)
def test_our_stages_read_what_is_said_here(name: str) -> None:
    asked = Asked()
    if name == "FusedStage":
        serving_fused.settings_of(asked)
    else:
        stage = getattr(serving, name)()
        stage.model = name
        stage.configure({"model_repository": "nowhere"}, {"input": [{"dims": ["-1", "8"]}]}, asked)
    assert asked.names >= set(READS[name])


def test_the_shipped_models_are_known_by_their_code() -> None:
    models = {name: read_model(SHIPPED / name) for name in ("frnn", "applyfilter", "wcc", "exatrkx_fused", "embed")}
    assert {name: stage_of(model) for name, model in models.items()} == {
        "frnn": "FrnnStage",
        "applyfilter": "ApplyFilterStage",
        "wcc": "WccStage",
        "exatrkx_fused": "FusedStage",
        "embed": "",
    }
    assert reads(models["frnn"], "radius") and not reads(models["frnn"], "cut")


@pytest.mark.parametrize("code", ["", "def broken(:", "radius = 2", "# 'radius'"])
def test_code_without_the_name_reads_nothing(tmp_path: Path, code: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"')
    (tmp_path / "m" / "1" / "model.py").write_text(code)
    model = read_model(tmp_path / "m")
    assert (stage_of(model), reads(model, "radius")) == ("", False)
