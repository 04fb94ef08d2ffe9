"""The parameters of the fused model's config.pbtxt, as the server and the tools beside it read them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, PipelineSettings, Scores

#: The parameter of applyfilter, wcc and the fused model that says what the edge networks give.
SCORES = "scores"


def networks_folder(folder: Path, parameters: Mapping[str, str]) -> Path:
    """Return the folder of `embed`, `filter` and `gnn` for the fused model in `folder`."""
    # By its name alone: behind a link, the system's own '..' would be beside what the link leads to.
    return Path(os.path.normpath(folder / parameters.get("networks", "..")))


def settings_of(parameters: Mapping[str, str]) -> PipelineSettings:
    """Return the settings that `parameters` name by their fields; the others have their defaults.

    Raises ValueError for a value that is no number, or another word than `scores` can be.
    """
    stated = {
        field.name: type(getattr(DEFAULT_SETTINGS, field.name))(parameters[field.name])
        for field in dataclasses.fields(PipelineSettings)
        if field.name in parameters and field.name != SCORES
    }
    return dataclasses.replace(DEFAULT_SETTINGS, **stated, scores=scores_of(parameters))


def scores_of(parameters: Mapping[str, str]) -> Scores:
    """Return what the parameter `scores` says that the edge networks give; logits without a word.

    Raises ValueError for another word.
    """
    stated = parameters.get(SCORES, DEFAULT_SETTINGS.scores)
    for known in get_args(Scores):
        if stated == known:
            return cast(Scores, known)
    raise ValueError(f"{SCORES} is {stated!r}; use {' or '.join(map(repr, get_args(Scores)))}")
