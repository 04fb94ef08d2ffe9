"""A template for workloads: points with ids, two inputs, four outputs of different lengths; see `model_repos/echo`.

Like a workload of a user, it imports from `exatrkx_hpc` only.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from exatrkx_hpc import ModelError, Request, Tensor, Tensors, Workload, decode_npz, encode_npz


def _agree(inputs: Tensors, outputs: Tensors) -> None:
    """Raise ModelError unless the number of links is the number of points minus one."""
    points, links = len(inputs["points"]), len(outputs["links"])
    if links != max(points - 1, 0):
        raise ModelError(f"echo sent {links} links for {points} points, not {max(points - 1, 0)}")


def _sample(random: np.random.Generator) -> Tensors:
    return {"points": random.normal(size=(5, 2)).astype(np.float32), "ids": np.arange(5, dtype=np.int64)}


WORKLOAD: Final = Workload(
    name="echo",
    item="points",
    inputs=(
        Tensor(name="points", dtype="float32", shape=("points", 2), columns=("x", "y"), units="any"),
        Tensor(name="ids", dtype="int64", shape=("points",), columns=("id",)),
    ),
    outputs=(
        Tensor(name="copies", dtype="float32", shape=("points", 2), columns=("x", "y")),
        Tensor(name="sums", dtype="float32", shape=("points",)),
        Tensor(name="links", dtype="int64", shape=("links", 2), units="ids of neighbouring points"),
        Tensor(name="size", dtype="int64", shape=(1,), units="the number of points"),
    ),
    model="echo",
    modes={
        "ensemble": (
            Request(
                model="{model}",
                inputs={"POINTS": "points", "IDS": "ids"},
                outputs={"COPIES": "copies", "SUMS": "sums", "LINKS": "links", "SIZE": "size"},
            ),
        )
    },
    encode=encode_npz,
    decode=decode_npz,
    suffix=".npz",
    agree=_agree,
    counts=lambda outputs: {"links": len(outputs["links"])},
    sample=_sample,
)
