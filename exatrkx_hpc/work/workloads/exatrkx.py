"""ExaTrkX track finding: from the hits of an event to track labels, in the modes ensemble, stages, fused and direct."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.whole_numbers import Integers, whole_numbers
from exatrkx_hpc.work.workloads.base import Infer, Request, Tensor, Tensors, Workload
from exatrkx_hpc.work.workloads.hits_csv import parse_csv
from exatrkx_hpc.work.workloads.hits_numpy import parse_npy, parse_npz
from exatrkx_hpc.work.workloads.units import HitSample

HITS: Final = "hits"
LABELS: Final = "labels"

#: The ensemble from FEATURES (hits) to LABELS, and the model that does the same in one process.
MODEL: Final = "exatrkx"
FUSED_MODEL: Final = "exatrkx_fused"


#: A track has at least this many hits. Same value as in tracking/scoring/score.py, which a worker does not load.
MIN_TRACK_HITS: Final = 3


def _one_request(model: str) -> tuple[Request, ...]:
    return (Request(model=model, inputs={"FEATURES": HITS}, outputs={"LABELS": LABELS}),)


_STAGES: Final = (
    Request(model="embed", inputs={"INPUT__0": HITS}, outputs={"OUTPUT__0": "embedding"}, stage="embedding"),
    Request(model="frnn", inputs={"INPUT0": "embedding"}, outputs={"OUTPUT0": "candidates"}, stage="building"),
    Request(
        model="filter",
        inputs={"INPUT__0": HITS, "INPUT__1": "candidates"},
        outputs={"OUTPUT__0": "filter_scores"},
        stage="filtering",
    ),
    Request(
        model="applyfilter",
        inputs={"FILTER_SCORES": "filter_scores", "EDGE_LIST": "candidates"},
        outputs={"EDGE_LIST_AFTER_FILTER": "edges"},
        stage="filtering",
    ),
    Request(
        model="gnn",
        inputs={"INPUT__0": HITS, "INPUT__1": "edges"},
        outputs={"OUTPUT__0": "edge_scores"},
        stage="gnn",
    ),
    Request(
        model="wcc",
        inputs={"INPUT0": "edges", "INPUT1": "edge_scores", "INPUT2": HITS},
        outputs={"OUTPUT0": LABELS},
        stage="labeling",
    ),
)


def labels_text(outputs: Tensors) -> bytes:
    """Return labels `[N]` as a label file: one integer per line, in the order of the hits."""
    labels = outputs[LABELS]
    return ("%d\n" * labels.size % tuple(labels.tolist())).encode()


def read_labels(path: Path, data: bytes) -> Mapping[str, Integers]:
    """Return the exact labels `[N]` of a label file of any program: int64, or uint64 if a label is 2^63 or more.

    An empty file has N = 0. Raises InputError with the line unless each line is one 64-bit integer.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a label file: it is not text ({error.reason}); write it again") from error
    lines = text.rstrip().split("\n") if text.strip() else []
    try:
        return {LABELS: whole_numbers(lines, first=1)}
    except ValueError as error:
        raise InputError(f"{path}:{error}; a label file has one 64-bit integer per line") from error


def count_tracks(labels: Integers) -> int:
    """Return the number of labels in `[N]` that have at least MIN_TRACK_HITS hits; negative labels mean no track."""
    _, hits = np.unique(labels[labels >= 0], return_counts=True)
    return int((hits >= MIN_TRACK_HITS).sum())


def _in_process(repository: Path) -> Infer:
    from exatrkx_hpc.models.pipeline import load_tracker

    find = load_tracker(repository)
    return lambda inputs: {LABELS: find(inputs[HITS])}


def _sample(random: np.random.Generator) -> Mapping[str, np.ndarray]:  # type: ignore[type-arg]
    hits = random.uniform((0.01, -1.0, -2.5), (0.33, 1.0, 2.5), size=(60, 3)).astype(np.float32)
    return {HITS: hits}


WORKLOAD: Final = Workload(
    name="exatrkx",
    item=HITS,
    inputs=(
        Tensor(
            name=HITS,
            dtype="float32",
            shape=(HITS, 3),
            columns=("r", "phi", "z"),
            units="r / 3000 mm, phi / pi, z / 400 mm",
        ),
    ),
    outputs=(Tensor(name=LABELS, dtype="int64", shape=(HITS,), units="hits of one track have the same"),),
    model=MODEL,
    also=(FUSED_MODEL,),
    modes={"ensemble": _one_request("{model}"), "stages": _STAGES, "fused": _one_request(FUSED_MODEL)},
    encode=labels_text,
    decode=read_labels,
    suffix=".csv",
    folder=LABELS,
    in_process=_in_process,
    in_process_models="embed, filter, gnn",
    counts=lambda outputs: {"tracks": count_tracks(outputs[LABELS])},
    parsers={
        "csv": lambda path, data: {HITS: parse_csv(path, data)},
        "npy": lambda path, data: {HITS: parse_npy(path, data)},
        "npz": lambda path, data: {HITS: parse_npz(path, data)},
    },
    sampler=HitSample,
    sample=_sample,
)
