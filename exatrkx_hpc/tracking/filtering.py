"""Apply the filter: drop the candidate edges that the filter network finds unlikely."""

from __future__ import annotations

import math

import numpy as np

from exatrkx_hpc.tracking.arrays import AnyArray, in_kind, on_gpu, on_host
from exatrkx_hpc.tracking.constants import Float32, Int64


def logit(probability: float) -> float:
    """Return the logit whose sigmoid is `probability`, rounded to float32: -inf for 0 and less, inf from 1 on.

    Networks give logits. It is cheaper to turn the cut into one than all of them into probabilities.
    """
    if not 0.0 < probability < 1.0:
        return -math.inf if probability <= 0.0 else math.inf
    return float(np.float32(math.log(probability) - math.log1p(-probability)))


def accepted(logits: Float32, *, cut: float) -> AnyArray:
    """Return which of the `logits` `[E]` or `[E, 1]` have a sigmoid above `cut`, as booleans `[E]`.

    Works on NumPy, torch and CuPy arrays, where they are. A NaN is not accepted.
    """
    return logits.reshape(-1) > logit(cut)


def apply_filter(edges: Int64, logits: Float32, *, cut: float) -> Int64:
    """Return the edges `[2, E']` of `edges` `[2, E]` (int64) whose sigmoid of `logits` `[E]` is above `cut`.

    Both are NumPy, torch or CuPy arrays of one kind and device, and so is the answer. The order is kept.
    """
    kept: Int64
    if on_gpu(edges):
        kept = edges[:, accepted(logits, cut=cut)]
    else:
        # Rows taken by number are faster than columns chosen by a mask; methods cost less than NumPy's functions.
        (keep,) = accepted(on_host(logits), cut=cut).nonzero()
        kept = in_kind(on_host(edges).take(keep, axis=1), edges)
    return kept
