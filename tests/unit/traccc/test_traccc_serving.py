"""The twin's stage in this process: both contracts, and what it says of a configuration that it does not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cell_events import NOWHERE, cells_of, small_event

pytest.importorskip("acts")

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.models.code import reads, stage_of
from exatrkx_hpc.models.repository import CONFIG, Model, read_config
from exatrkx_hpc.traccc.detector import UnknownModule
from exatrkx_hpc.traccc.serving import TracccStage
from exatrkx_hpc.traccc.tensors import OUTPUTS, write_buffer

pytestmark = pytest.mark.slow
SHIPPED = asset("model_repos/traccc") / "traccc-cpu"


def stage(*inputs: str) -> TracccStage:
    config = {"input": [{"name": name} for name in inputs], "parameters": {"numpy2": {"string_value": "allow"}}}
    made = TracccStage()
    made.initialize({"model_name": "traccc-cpu", "model_config": json.dumps(config)})
    return made


def test_both_contracts_give_the_same_tracks():
    cells = small_event().cells
    current = stage("CELL_POSITIONS", "CELL_PROPERTIES")
    expected = current.compute({"CELL_POSITIONS": cells.positions, "CELL_PROPERTIES": cells.properties})
    assert len(expected) == len(OUTPUTS) and len(expected[0]) > 5
    answer = stage("CELLS").compute({"CELLS": write_buffer(cells, current.chain.detector)})
    assert all(np.array_equal(one, other) for one, other in zip(answer, expected, strict=True))


def test_an_unknown_id_is_named():
    bad = cells_of((NOWHERE, 0, 0))
    with pytest.raises(UnknownModule, match=f"geometry id {NOWHERE} in row 0"):
        stage("CELL_POSITIONS", "CELL_PROPERTIES").compute(
            {"CELL_POSITIONS": bad.positions, "CELL_PROPERTIES": bad.properties}
        )


@pytest.mark.parametrize("inputs", [("GEOMETRY_ID", "FEATURES"), ("CELL_POSITIONS",), ("CELLS", "CELL_POSITIONS")])
def test_another_contract_is_refused_with_what_is_known(inputs):
    told = f"traccc-cpu: config.pbtxt has the inputs {', '.join(inputs)}; this model knows CELL_POSITIONS and"
    with pytest.raises(ValueError, match=told):
        stage(*inputs)


def test_the_tools_know_the_stage():
    model = Model(folder=SHIPPED, config=read_config(SHIPPED / CONFIG))
    assert stage_of(model) == "TracccStage"
    assert not reads(model, "cut")


def test_the_twin_and_the_gpu_model_have_the_same_tensors():
    twin, gpu = (read_config(asset("model_repos/traccc") / name / CONFIG) for name in ("traccc-cpu", "traccc-gpu"))
    assert list(twin.input) == list(gpu.input)
    assert list(twin.output) == list(gpu.output)
    assert (twin.backend, gpu.backend) == ("python", "traccc")
    assert [entry.name for entry in twin.output] == list(OUTPUTS)
