"""Change the constants of a repository's pipeline: parameters of its config.pbtxt files, never code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from exatrkx_hpc.errors import ConfigError, ModelError
from exatrkx_hpc.models.pipeline import CONSTANTS, is_fused
from exatrkx_hpc.models.repository import CONFIG, read_models, write_config


def check_settings(changes: Mapping[str, float]) -> None:
    """Raise ConfigError, which names the option, for a constant that makes no sense; keys as in PipelineSettings."""
    for name, value in changes.items():
        option = "--" + name.replace("_", "-")
        if name == "radius" and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{option} is {value:g}; give a distance in the embedding, more than 0")
        if name == "max_neighbours" and value < 1:
            raise ConfigError(f"{option} is {value:g}; give a whole number, 1 or more")
        if name.endswith("_cut") and not 0 <= value < 1:
            raise ConfigError(f"{option} is {value:g}; give a probability, 0 or more and less than 1")


def write_settings(repository: Path, changes: Mapping[str, float]) -> None:
    """Write these constants into the config.pbtxt of the stages and of every fused model of a repository.

    Raises ConfigError for a value that makes no sense, ModelError when a stage is missing.
    """
    check_settings(changes)
    models = {model.name: model for model in read_models(repository)}
    touched = set()
    for name, value in changes.items():
        stage, key = CONSTANTS[name]
        if stage not in models:
            raise ModelError(f"{repository} has no model {stage}, whose parameter {name} is; add it")
        places = [(stage, key), *((model.name, name) for model in models.values() if is_fused(model))]
        for model_name, parameter in places:
            models[model_name].config.parameters[parameter].string_value = str(value)
            touched.add(model_name)
    for model_name in sorted(touched):
        write_config(models[model_name].folder / CONFIG, models[model_name].config)
