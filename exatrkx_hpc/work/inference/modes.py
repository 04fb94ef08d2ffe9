"""The requests that turn one event into labels, for each mode that asks a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.errors import ConfigError

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import Mode

MODEL: Final = "exatrkx"
"""The ensemble that turns FEATURES (hits) into LABELS."""

FUSED_MODEL: Final = "exatrkx_fused"
"""The model that does the same in one process."""

HITS: Final = "hits"
LABELS: Final = "labels"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a route: the model, what goes into each of its inputs, its output, and what that is called.

    `inputs` maps the model's tensor names to what they hold: `hits`, or the `result` of a request before.
    """

    model: str
    inputs: Mapping[str, str]
    output: str
    result: str


_STAGES: Final = (
    Request(model="embed", inputs={"INPUT__0": HITS}, output="OUTPUT__0", result="embedding"),
    Request(model="frnn", inputs={"INPUT0": "embedding"}, output="OUTPUT0", result="candidates"),
    Request(
        model="filter",
        inputs={"INPUT__0": HITS, "INPUT__1": "candidates"},
        output="OUTPUT__0",
        result="filter_scores",
    ),
    Request(
        model="applyfilter",
        inputs={"FILTER_SCORES": "filter_scores", "EDGE_LIST": "candidates"},
        output="EDGE_LIST_AFTER_FILTER",
        result="edges",
    ),
    Request(model="gnn", inputs={"INPUT__0": HITS, "INPUT__1": "edges"}, output="OUTPUT__0", result="edge_scores"),
    Request(
        model="wcc",
        inputs={"INPUT0": "edges", "INPUT1": "edge_scores", "INPUT2": HITS},
        output="OUTPUT0",
        result=LABELS,
    ),
)


def route(mode: Mode, model: str = MODEL) -> tuple[Request, ...]:
    """Return the requests of a mode, in order; the last one's result is the labels.

    `model` is what mode `ensemble` asks. Raises ConfigError for `direct`, which asks nothing, and for a mode that
    does not exist.
    """
    if mode == "stages":
        return _STAGES
    if mode in ("ensemble", "fused"):
        asked = FUSED_MODEL if mode == "fused" else model
        return (Request(model=asked, inputs={"FEATURES": HITS}, output="LABELS", result=LABELS),)
    if mode == "direct":
        raise ConfigError(
            "mode direct has no endpoint; 'exatrkx-hpc run-clients --mode direct' works without a server, and in "
            "Python exatrkx_hpc.models.pipeline.load_pipeline(FOLDER).find_tracks(hits)"
        )
    raise ConfigError(f"mode is {mode!r}; use ensemble, stages, fused or direct")


def models_of(mode: Mode, model: str = MODEL) -> str:
    """Return the names of the models that a mode runs, in order, for a message or a report."""
    if mode == "direct":
        return "embed, filter, gnn"
    return ", ".join(request.model for request in route(mode, model))
