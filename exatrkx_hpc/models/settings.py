"""Change the constants of a repository's pipeline: parameters of its config.pbtxt files, never code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from exatrkx_hpc.base.errors import ConfigError, ModelError
from exatrkx_hpc.models.code import reads
from exatrkx_hpc.models.pipeline import CONSTANTS, SCORED, is_fused
from exatrkx_hpc.models.repository import CONFIG, Model, read_models, write_config
from exatrkx_hpc.tracking.constants import EdgeOrder, Scores
from exatrkx_hpc.tracking.parameters import SCORES


def check_settings(changes: Mapping[str, float | str]) -> None:
    """Raise ConfigError, which names the option, for an invalid constant; keys are the fields of PipelineSettings."""
    for name, value in changes.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, str):
            _check_word(option, value, get_args(Scores if name == SCORES else EdgeOrder))
        elif name == "radius" and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{option} is {value:g}; give a distance in the embedding, more than 0")
        elif name == "max_neighbours" and value < 1:
            raise ConfigError(f"{option} is {value:g}; give a whole number, 1 or more")
        elif name.endswith("_cut") and not 0 <= value < 1:
            raise ConfigError(f"{option} is {value:g}; give a probability, 0 or more and less than 1")


def _check_word(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} is {value!r}; use {' or '.join(known)}")


def write_settings(repository: Path, changes: Mapping[str, float | str]) -> None:
    """Write these constants into the config.pbtxt of the stages and of every fused model of a repository.

    Raises ConfigError for an invalid value, ModelError when a stage is missing or its code does not read the parameter,
    so that a change would have no effect.
    """
    check_settings(changes)
    models = {model.name: model for model in read_models(repository)}
    touched = set()
    for name, value in changes.items():
        for model_name, parameter in _places(models, name, repository):
            if not reads(models[model_name], parameter):
                raise ModelError(
                    f"{model_name} does not read the parameter {parameter}, so --{name.replace('_', '-')} would change "
                    f"nothing; change the model's code, or take {model_name} from the shipped repository"
                )
            models[model_name].config.parameters[parameter].string_value = str(value)
            touched.add(model_name)
    for model_name in sorted(touched):
        write_config(models[model_name].folder / CONFIG, models[model_name].config)


def _places(models: Mapping[str, Model], name: str, repository: Path) -> list[tuple[str, str]]:
    """Return the pairs (model, parameter) that hold the constant `name`."""
    stages = [(stage, name) for stage in SCORED] if name == SCORES else [CONSTANTS[name]]
    for stage, _ in stages:
        if stage not in models:
            raise ModelError(f"{repository} has no model {stage}, which has the parameter {name}; add the model")
    return [*stages, *((model.name, name) for model in models.values() if is_fused(model))]
