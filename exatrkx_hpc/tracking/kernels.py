"""Launch the kernels of kernels.cu: the neighbour search and the connected components on a GPU.

The launcher is a parameter: CuPy on a GPU (gpu.py) or, in the tests, NumPy with the same kernels compiled as C++.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from exatrkx_hpc.tracking.arrays import AnyArray
from exatrkx_hpc.tracking.constants import Scores
from exatrkx_hpc.tracking.filtering import threshold

#: Same as TILE in kernels.cu.
_TILE = 128
#: Threads per block, where the kernel does not fix the number.
_THREADS = 256
#: Target number of blocks for a small event: two per multiprocessor of an H200.
_ENOUGH_BLOCKS = 264


class Launcher(Protocol):
    """Runs kernels; `xp` is NumPy or CuPy, and makes the arrays for `launch`."""

    xp: Any

    def launch(self, kernel: str, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:  # noqa: ANN401
        """Start a kernel; numbers among the arguments are NumPy scalars of the type that the kernel takes."""


def edges_within(run: Launcher, places: AnyArray, *, radius: float, max_neighbours: int) -> AnyArray:
    """Compute `frnn.fixed_radius_edges` for `places` float32 `[N, D]`, in the same order.

    The kernels must be compiled with DIMENSIONS = D. Memory grows with N and E, not with N x N.
    """
    xp, n = run.xp, len(places)
    if n < 2 or max_neighbours < 1:
        return xp.empty((2, 0), dtype=np.int64)
    places = xp.ascontiguousarray(places, dtype=np.float32)
    tiles = -(-n // _TILE)
    shares = min(tiles, -(-_ENOUGH_BLOCKS // tiles))
    reach = _above(radius**2, places.shape[1])
    limit, last = xp.full(n, radius**2, dtype=np.float64), xp.full(n, n, dtype=np.int32)
    lower, near_by = xp.empty((n, shares), dtype=np.int32), xp.empty((n, shares), dtype=np.int32)
    search = (places, np.int32(n), reach, limit, last)
    run.launch("frnn_count", (tiles, shares), _TILE, *search, lower, near_by)
    degree = near_by.sum(axis=1, dtype=np.int64)
    if int(degree.max()) > max_neighbours:
        crowded = xp.flatnonzero(degree > max_neighbours).astype(np.int32)
        which = (places, np.int32(n), np.float64(radius**2), reach, np.int32(max_neighbours), crowded)
        run.launch("frnn_limit", (len(crowded), 1), _THREADS, *which, limit, last)
        run.launch("frnn_count", (tiles, shares), _TILE, *search, lower, near_by)
    ends = lower.reshape(-1).cumsum(dtype=np.int64)
    edges = xp.empty((2, int(ends[-1])), dtype=np.int64)
    if edges.size:
        run.launch("frnn_write", (tiles, shares), _TILE, *search, lower, ends, np.int64(edges.shape[1]), edges)
    return edges


def labels_of(
    run: Launcher, edges: AnyArray, values: AnyArray, *, cut: float, n_hits: int, scores: Scores = "logits"
) -> AnyArray:
    """Compute `components.label_components`, with the same numbers of the tracks."""
    xp = run.xp
    if n_hits == 0:
        return xp.empty(0, dtype=np.int64)
    edges = xp.ascontiguousarray(edges, dtype=np.int64)
    values = xp.ascontiguousarray(values.reshape(-1), dtype=np.float32)
    parent, n, n_edges = xp.empty(n_hits, dtype=np.int32), np.int32(n_hits), edges.shape[1]
    over_hits = (-(-n_hits // _THREADS), 1)
    run.launch("component_start", over_hits, _THREADS, parent, n)
    if n_edges:
        over_edges = (-(-n_edges // _THREADS), 1)
        which = (edges, values, np.float32(threshold(cut, scores=scores)), np.int64(n_edges))
        run.launch("component_join", over_edges, _THREADS, *which, parent)
    run.launch("component_finish", over_hits, _THREADS, parent, n)
    # The root is a component's first hit, so counting the roots numbers the components as SciPy does.
    number = (parent == xp.arange(n_hits, dtype=np.int32)).cumsum(dtype=np.int64) - 1
    return number[parent]


def _above(square: float, width: int) -> np.float32:
    """Return a float32 upper bound of rounded squared distances whose exact value is at most `square`."""
    return np.float32(np.nextafter(np.float32(square * (1.0 + (width + 8) * 2.0**-22)), np.float32(np.inf)))
