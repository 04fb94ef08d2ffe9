"""Model repositories for tests: a small one that starts fast, and ways to break a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.models.repository import CONFIG, read_config, write_config

#: What clients of the public service rely on: tensor names, types and shapes of each model.
CONTRACT = {
    "exatrkx": ("FEATURES FP32 [-1, 3]", "LABELS INT64 [-1]"),
    "exatrkx_fused": ("FEATURES FP32 [-1, 3]", "LABELS INT64 [-1]"),
    "embed": ("INPUT__0 FP32 [-1, 3]", "OUTPUT__0 FP32 [-1, 8]"),
    "frnn": ("INPUT0 FP32 [-1, 8]", "OUTPUT0 INT64 [2, -1]"),
    "filter": ("INPUT__0 FP32 [-1, 3]", "INPUT__1 INT64 [2, -1]", "OUTPUT__0 FP32 [-1, 1]"),
    "applyfilter": (
        "FILTER_SCORES FP32 [-1, 1]",
        "EDGE_LIST INT64 [2, -1]",
        "EDGE_LIST_AFTER_FILTER INT64 [2, -1]",
    ),
    "gnn": ("INPUT__0 FP32 [-1, 3]", "INPUT__1 INT64 [2, -1]", "OUTPUT__0 FP32 [-1]"),
    "wcc": (
        "INPUT0 INT64 [2, -1]",
        "INPUT1 FP32 [-1]",
        "INPUT2 FP32 [-1, 3] optional",
        "OUTPUT0 INT64 [-1]",
    ),
}


def small_repository(folder: Path) -> Path:
    """Make a repository of two of the shipped stages and an ensemble of them, without a neural network."""
    shipped = asset("model_repos/exatrkx")
    for name in ("frnn", "applyfilter"):
        shutil.copytree(shipped / name, folder / name)
    config = ModelConfig(name="pair", platform="ensemble")
    config.input.add(name="EMBEDDING", data_type=DataType.TYPE_FP32, dims=[-1, 8])
    config.input.add(name="SCORES", data_type=DataType.TYPE_FP32, dims=[-1, 1])
    config.output.add(name="EDGES", data_type=DataType.TYPE_INT64, dims=[2, -1])
    step = config.ensemble_scheduling.step.add(model_name="frnn", model_version=-1)
    step.input_map["INPUT0"] = "EMBEDDING"
    step.output_map["OUTPUT0"] = "candidates"
    step = config.ensemble_scheduling.step.add(model_name="applyfilter", model_version=-1)
    step.input_map["EDGE_LIST"] = "candidates"
    step.input_map["FILTER_SCORES"] = "SCORES"
    step.output_map["EDGE_LIST_AFTER_FILTER"] = "EDGES"
    (folder / "pair" / "1").mkdir(parents=True)
    write_config(folder / "pair" / CONFIG, config)
    return folder


#: A model that takes events and gives every hit the label 0; it loads within a second.
MODEL = """\
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        sizes = [len(pb_utils.get_input_tensor_by_name(request, "FEATURES").as_numpy()) for request in requests]
        tensors = [pb_utils.Tensor("LABELS", np.zeros(size, dtype=np.int64)) for size in sizes]
        return [pb_utils.InferenceResponse([tensor]) for tensor in tensors]
"""


def tiny_repository(folder: Path) -> None:
    """Make a repository with MODEL only."""
    config = ModelConfig(name="exatrkx", backend="python")
    config.input.add(name="FEATURES", data_type=DataType.TYPE_FP32, dims=[-1, 3])
    config.output.add(name="LABELS", data_type=DataType.TYPE_INT64, dims=[-1])
    (folder / "exatrkx" / "1").mkdir(parents=True)
    (folder / "exatrkx" / "1" / "model.py").write_text(MODEL)
    write_config(folder / "exatrkx" / CONFIG, config)


@dataclass(frozen=True, kw_only=True)
class Break:
    """One way to break the small repository, and the finding of `check`: its model and its text."""

    name: str
    apply: Callable[[Path], None]
    model: str
    says: str
    #: The error of Triton 2.51 itself; None if Triton does not refuse the repository.
    triton: str | None


def edit(repository: Path, model: str, change: Callable[[ModelConfig], object]) -> None:
    """Apply `change` to the config.pbtxt of one model."""
    path = repository / model / CONFIG
    config = read_config(path)
    change(config)
    write_config(path, config)


def _configure(model: str, change: Callable[[ModelConfig], object]) -> Callable[[Path], None]:
    return lambda repository: edit(repository, model, change)


def _tie_a_knot(config: ModelConfig) -> None:
    """Make two steps wait for each other's output, without any other fault."""
    first, second = config.ensemble_scheduling.step
    first.CopyFrom(second)
    first.input_map["EDGE_LIST"] = "EDGES"
    first.output_map["EDGE_LIST_AFTER_FILTER"] = "candidates"
    del config.input[0]


def _leave_out_an_input(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[1].input_map.pop("FILTER_SCORES")
    del config.input[1]


def _misname_an_output(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[0].output_map.clear()
    config.ensemble_scheduling.step[0].output_map["OUTPUT9"] = "candidates"


def _forget_the_candidates(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[1].input_map["EDGE_LIST"] = "MORE"
    config.input.add(name="MORE", data_type=DataType.TYPE_INT64, dims=[2, -1])


def _recurse(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[0].model_name = "pair"


def _set_environment(config: ModelConfig, value: str) -> None:
    config.parameters["EXECUTION_ENV_PATH"].string_value = value


def _two_makers(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[1].output_map["EDGE_LIST_AFTER_FILTER"] = "candidates"


BREAKS = (
    Break(
        name="missing-code",
        apply=lambda repository: (repository / "frnn/1/model.py").unlink(),
        model="frnn",
        says="1/model.py is missing",
        triton=None,  # Worse than a refusal: the server neither becomes ready nor exits.
    ),
    Break(
        name="empty-code",
        apply=lambda repository: (repository / "frnn/1/model.py").write_text(""),
        model="frnn",
        says="1/model.py is empty",
        triton="has no attribute 'TritonPythonModel'",
    ),
    Break(
        name="unreadable-config",
        apply=lambda repository: (repository / "frnn" / CONFIG).write_text('name: "frnn"\nbakend: "python"\n'),
        model="frnn",
        says="is not a Triton model configuration: 2:1",
        triton='has no field named "bakend"',
    ),
    Break(
        name="no-config",
        apply=lambda repository: (repository / "frnn" / CONFIG).unlink(),
        model="frnn",
        says="cannot be read: No such file",
        triton=None,
    ),
    Break(
        name="other-name",
        apply=_configure("frnn", lambda config: setattr(config, "name", "frnm")),
        model="frnn",
        says="the name in config.pbtxt is 'frnm', but the folder is 'frnn'",
        triton="unexpected directory name 'frnn' for model 'frnm'",
    ),
    Break(
        name="no-backend",
        apply=_configure("frnn", lambda config: config.ClearField("backend")),
        model="frnn",
        says="names no backend",
        triton=None,
    ),
    Break(
        name="no-version",
        apply=lambda repository: (repository / "frnn/1").rename(repository / "frnn/first"),
        model="frnn",
        says="no version folder to serve",
        triton="at least one version must be available",
    ),
    Break(
        name="ensemble-without-version",
        apply=lambda repository: (repository / "pair/1").rmdir(),
        model="pair",
        says="no version folder to serve",
        triton="at least one version must be available",
    ),
    Break(
        name="nothing-produces",
        apply=_configure(
            "pair",
            lambda config: config.ensemble_scheduling.step[1].input_map.update({"EDGE_LIST": "candidate"}),
        ),
        model="pair",
        says="nothing produces the tensor candidate (input EDGE_LIST of applyfilter)",
        triton="'candidate', is not connected",
    ),
    Break(
        name="output-not-produced",
        apply=_configure("pair", lambda config: setattr(config.output[0], "name", "LABELS")),
        model="pair",
        says="nothing produces the tensor LABELS (output of the ensemble)",
        triton="'LABELS' for ensemble",
    ),
    Break(
        name="produced-twice",
        apply=_configure("pair", _two_makers),
        model="pair",
        says="the tensor candidates is produced twice",
        triton="can appear in an output map only once",
    ),
    Break(
        name="unknown-member",
        apply=lambda repository: shutil.rmtree(repository / "frnn"),
        model="pair",
        says="the step frnn is not a model of this repository",
        triton="not available or ambiguous: frnn",
    ),
    Break(
        name="dtypes",
        apply=_configure("frnn", lambda config: setattr(config.output[0], "data_type", DataType.TYPE_INT32)),
        model="pair",
        says="candidates is INT32 [2, -1] (output OUTPUT0 of frnn) but taken as INT64 [2, -1]",
        triton="inconsistent data type",
    ),
    Break(
        name="shapes",
        apply=_configure("pair", lambda config: config.input[0].dims.__setitem__(1, 7)),
        model="pair",
        says="EMBEDDING is FP32 [-1, 7] (input of the ensemble) but taken as FP32 [-1, 8] (input INPUT0 of frnn)",
        triton="inconsistent shape",
    ),
    Break(
        name="output-shape",
        apply=_configure("pair", lambda config: config.output[0].dims.append(4)),
        model="pair",
        says="EDGES is INT64 [2, -1] (output EDGE_LIST_AFTER_FILTER of applyfilter) but taken as INT64 [2, -1, 4]",
        triton="inconsistent shape",
    ),
    Break(
        name="cycle",
        apply=_configure("pair", _tie_a_knot),
        model="pair",
        says="the steps applyfilter, applyfilter wait for each other's tensors",
        triton="'EDGES' for ensemble 'pair' is not written",
    ),
    Break(
        name="calls-itself",
        apply=_configure("pair", _recurse),
        model="pair",
        says="a step of itself",
        triton="circular dependency",
    ),
    Break(
        name="input-left-out",
        apply=_configure("pair", _leave_out_an_input),
        model="pair",
        says="leaves out the input FILTER_SCORES, which applyfilter requires",
        triton="FILTER_SCORES",
    ),
    Break(
        name="unknown-input",
        apply=_configure(
            "pair", lambda config: config.ensemble_scheduling.step[0].input_map.update({"INPUT9": "SCORES"})
        ),
        model="pair",
        says="maps the input INPUT9, which frnn does not have",
        triton="non-existing input INPUT9",
    ),
    Break(
        name="unknown-output",
        apply=_configure("pair", _misname_an_output),
        model="pair",
        says="maps the output OUTPUT9, which frnn does not have",
        triton="non-existing output OUTPUT9",
    ),
    Break(
        name="unused-output",
        apply=_configure("pair", _forget_the_candidates),
        model="pair",
        says="nothing uses the tensor candidates",
        triton="'candidates' is unused",
    ),
    Break(
        name="unused-input",
        apply=_configure("pair", lambda config: config.input.add(name="X", data_type=11, dims=[1])),
        model="pair",
        says="nothing uses the tensor X",
        triton="input 'X' for ensemble",
    ),
    Break(
        name="no-steps",
        apply=_configure("pair", lambda config: config.ClearField("ensemble_scheduling")),
        model="pair",
        says="the ensemble pair has no step",
        triton="ensemble scheduling must be set",
    ),
    Break(
        name="missing-environment",
        apply=_configure("frnn", lambda config: _set_environment(config, "/nowhere/venv")),
        model="frnn",
        says="the Python environment /nowhere/venv does not exist",
        triton="canonical path for /nowhere/venv",
    ),
    Break(
        name="environment-without-activate",
        apply=_configure("frnn", lambda config: _set_environment(config, "$$TRITON_MODEL_DIRECTORY/1")),
        model="frnn",
        says="has no bin/activate",
        triton="bin/activate does not exist",
    ),
)
