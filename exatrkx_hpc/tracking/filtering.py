"""Apply the filter: drop the candidate edges that the filter network finds unlikely."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking.constants import Float32, Int64


def sigmoid(logits: Float32) -> Float32:
    """Return 1 / (1 + exp(-logits)), float32, of the same shape, without overflow for large negative logits."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)


def apply_filter(edges: Int64, logits: Float32, *, cut: float) -> Int64:
    """Return the edges `[2, E']` of `edges` `[2, E]` (int64) whose sigmoid of `logits` `[E]` is above `cut`."""
    return np.ascontiguousarray(edges[:, sigmoid(logits.reshape(-1)) > cut])
