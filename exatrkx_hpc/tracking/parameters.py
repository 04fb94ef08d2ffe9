"""The parameters of the fused model's config.pbtxt, as the server and the tools read them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, EdgeOrder, PipelineSettings, Scores

#: The parameter of applyfilter, wcc and the fused model for the kind of the edge networks' output.
SCORES = "scores"
#: The parameter of frnn and the fused model for the order of the hits in an edge.
EDGE_ORDER = "edge_order"


def networks_folder(folder: Path, parameters: Mapping[str, str]) -> Path:
    """Return the folder of `embed`, `filter` and `gnn` for the fused model in `folder`."""
    # Resolved by name only: if `folder` is a link, the system would resolve '..' at the link's target.
    return Path(os.path.normpath(folder / parameters.get("networks", "..")))


def settings_of(parameters: Mapping[str, str]) -> PipelineSettings:
    """Return the settings from `parameters`, which are named like the fields; missing ones keep their defaults.

    Raises ValueError for a value that is not a number, or for an unknown `scores` or `edge_order`.
    """
    stated = {
        field.name: type(getattr(DEFAULT_SETTINGS, field.name))(parameters[field.name])
        for field in dataclasses.fields(PipelineSettings)
        if field.name in parameters and field.name not in (SCORES, EDGE_ORDER)
    }
    return dataclasses.replace(
        DEFAULT_SETTINGS, **stated, scores=scores_of(parameters), edge_order=edge_order_of(parameters)
    )


def scores_of(parameters: Mapping[str, str]) -> Scores:
    """Return the parameter `scores`, the kind of the edge networks' output; `logits` by default.

    Raises ValueError for an unknown value.
    """
    return cast(Scores, _word(parameters, SCORES, get_args(Scores)))


def edge_order_of(parameters: Mapping[str, str]) -> EdgeOrder:
    """Return the parameter `edge_order`; `number` by default. Raises ValueError for an unknown value."""
    return cast(EdgeOrder, _word(parameters, EDGE_ORDER, get_args(EdgeOrder)))


def _word(parameters: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    stated = parameters.get(name, known[0])
    if stated not in known:
        raise ValueError(f"{name} is {stated!r}; use {' or '.join(map(repr, known))}")
    return stated
