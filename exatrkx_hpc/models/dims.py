"""Set the tensor shapes in the configurations of a repository to those of its networks."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.models.pipeline import HITS, is_fused
from exatrkx_hpc.models.repository import CONFIG, read_config, read_models, write_config
from exatrkx_hpc.tracking.features import FEATURES_FILE, Features


def set_features(repository: Path, file: Path, features: Features) -> None:
    """Write the features file, and set the width of a hit in the configurations."""
    write_whole(repository / FEATURES_FILE, file.read_bytes())
    for model in read_models(repository):
        tensor = HITS.get(model.name) or ("FEATURES" if is_fused(model) or model.is_ensemble else None)
        entries = [entry for entry in model.config.input if entry.name == tensor]
        for entry in entries:
            entry.dims[:] = (-1, len(features))
        if entries:
            write_config(model.folder / CONFIG, model.config)


def feed_hits(repository: Path, width: int) -> None:
    """Add the hits as a second input of frnn, and map it in the ensembles, where it is missing."""
    config = read_config(repository / "frnn" / CONFIG)
    if all(entry.name != "INPUT1" for entry in config.input):
        config.input.add(name="INPUT1", data_type=DataType.TYPE_FP32, dims=[-1, width], optional=True)
        write_config(repository / "frnn" / CONFIG, config)
    for model in read_models(repository):
        steps = [step for step in model.config.ensemble_scheduling.step if step.model_name == "frnn"]
        hits = {
            step.input_map["INPUT__0"] for step in model.config.ensemble_scheduling.step if step.model_name == "embed"
        }
        for step in steps:
            if hits and "INPUT1" not in step.input_map:
                step.input_map["INPUT1"] = hits.pop()
        if steps:
            write_config(model.folder / CONFIG, model.config)


def set_dims(path: Path, tensor: str, dims: tuple[int, ...]) -> None:
    """Write the dims of a tensor into a config.pbtxt; raise ModelError when it has no such tensor."""
    config: ModelConfig = read_config(path)
    found = [entry for entry in (*config.input, *config.output) if entry.name == tensor]
    if not found:
        raise ModelError(f"{path} has no tensor {tensor}; start from the shipped repository")
    if tuple(found[0].dims) != dims:
        found[0].dims[:] = dims
        write_config(path, config)
