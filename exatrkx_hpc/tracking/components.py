"""Connected components: hits that accepted edges join form one track."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking import gpu
from exatrkx_hpc.tracking.arrays import in_kind, on_gpu, on_host
from exatrkx_hpc.tracking.constants import Float32, Int64, Scores
from exatrkx_hpc.tracking.filtering import apply_filter


def label_components(
    edges: Int64, values: Float32, *, cut: float, n_hits: int | None = None, scores: Scores = "logits"
) -> Int64:
    """Return one track label (int64) per hit, `[n_hits]`, numbered from 0 in the order of the tracks' first hits.

    `edges` is `[2, E]` (int64); `values` `[E]` are the `scores` of the edges. Both are NumPy, torch or CuPy arrays of
    one kind and device, and so is the result. An edge joins its hits if its probability is above `cut`. A hit without
    an accepted edge is a track of its own. The default of `n_hits` is the largest hit number in the edges plus one;
    later hits get no label.
    """
    if n_hits is None:
        n_hits = int(edges.max()) + 1 if edges.shape[1] else 0
    labels: Int64
    if on_gpu(edges):
        labels = gpu.label_components(edges, values, cut=cut, n_hits=n_hits, scores=scores)
    else:
        joined = apply_filter(on_host(edges), on_host(values), cut=cut, scores=scores)
        labels = in_kind(_components(joined, n_hits), edges)
    return labels


def _components(edges: Int64, n_hits: int) -> Int64:
    """Return the labels of all hits; each edge joins two hits.

    Each round hooks every tree to the lowest neighbour of its root, flattens the trees, and keeps the edges between
    different trees; after Shiloach and Vishkin, J. Algorithms 3 (1982) 57. Only roots without a lower neighbour remain
    after a round, so two rounds at least halve the number of trees with edges: O((N + E) log N).
    """
    numbers = np.arange(n_hits)
    root, (one, other) = numbers.copy(), edges
    while one.size:
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        root = _flattened(root)
        one, other = root.take(one), root.take(other)
        (apart,) = (one != other).nonzero()
        one, other = one.take(apart), other.take(apart)
    # A root is the first hit of its track, so counting roots numbers the tracks in the order of their first hits.
    labels: Int64 = ((root == numbers).cumsum() - 1).take(root)
    return labels


def _flattened(root: Int64) -> Int64:
    """Return the root of each hit; `root` has a hit closer to the root, or the root itself."""
    while True:
        further = root.take(root)
        if (further == root).all():
            return root
        root = further
