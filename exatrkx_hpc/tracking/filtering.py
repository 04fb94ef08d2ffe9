"""Apply the filter: drop the candidate edges with a low score."""

from __future__ import annotations

import math

import numpy as np

from exatrkx_hpc.tracking.arrays import AnyArray, in_kind, on_gpu, on_host
from exatrkx_hpc.tracking.constants import Float32, Int64, Scores


def logit(probability: float) -> float:
    """Return the logit whose sigmoid is `probability`, rounded to float32: -inf for 0 and less, inf from 1 on.

    Networks return logits. Converting the cut to a logit is cheaper than converting all logits to probabilities.
    """
    if not 0.0 < probability < 1.0:
        return -math.inf if probability <= 0.0 else math.inf
    return float(np.float32(math.log(probability) - math.log1p(-probability)))


def threshold(cut: float, *, scores: Scores) -> float:
    """Return the threshold, rounded to float32, that a score must exceed for its probability to be above `cut`."""
    return logit(cut) if scores == "logits" else float(np.float32(cut))


def accepted(values: Float32, *, cut: float, scores: Scores = "logits") -> AnyArray:
    """Return, as booleans `[E]`, which of the `values` `[E]` or `[E, 1]` have a probability above `cut`.

    `scores` is the kind of the values. NumPy, torch and CuPy arrays stay on their device. A NaN is not accepted.
    """
    return values.reshape(-1) > threshold(cut, scores=scores)


def apply_filter(edges: Int64, values: Float32, *, cut: float, scores: Scores = "logits") -> Int64:
    """Return the edges `[2, E']` of `edges` `[2, E]` (int64) whose probability is above `cut`.

    `values` `[E]` are the `scores` of the edges: logits or probabilities. Both are NumPy, torch or CuPy arrays of one
    kind and device, and so is the result. The order is kept.
    """
    kept: Int64
    if on_gpu(edges):
        kept = edges[:, accepted(values, cut=cut, scores=scores)]
    else:
        # Taking columns by number is faster than by a mask, and array methods are faster than NumPy's functions.
        (keep,) = accepted(on_host(values), cut=cut, scores=scores).nonzero()
        kept = in_kind(on_host(edges).take(keep, axis=1), edges)
    return kept
