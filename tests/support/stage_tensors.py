"""Tensors of the stages: edges, numbers and hits."""

from __future__ import annotations

import numpy as np


def edges(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T.copy()


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def hits(n: int, seed: int = 7) -> np.ndarray:
    """Return `n` random hits in the detector, float32 `[n, 3]`."""
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)
