"""Fixed-radius nearest neighbours: which hits lie close together in the embedding."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from exatrkx_hpc.tracking.constants import Float32, Int64


def fixed_radius_edges(embedding: Float32, *, radius: float, max_neighbours: int) -> Int64:
    """Return the candidate edges `[2, E]` (int64) of an embedding `[N, D]` (float32), each pair once.

    Row 0 holds the larger hit number i, row 1 the smaller j. Edge (i, j) is kept when the two are at most
    `radius` apart and j is one of the `max_neighbours` hits nearest to i, as in the original service, which
    queries the neighbours of every hit and then keeps i > j.
    """
    if len(embedding) < 2:
        return np.empty((2, 0), dtype=np.int64)
    tree = cKDTree(embedding)
    pairs = tree.query_pairs(radius, output_type="ndarray")
    edges: Int64 = np.stack([pairs[:, 1], pairs[:, 0]]).astype(np.int64, copy=False)
    degree = np.bincount(edges.ravel(), minlength=len(embedding))
    crowded = np.flatnonzero(degree > max_neighbours)
    if len(crowded):
        edges = _limit_neighbours(tree, embedding, edges, crowded, radius=radius, max_neighbours=max_neighbours)
    return edges[:, np.lexsort((edges[1], edges[0]))]


def _limit_neighbours(
    tree: cKDTree, embedding: Float32, edges: Int64, crowded: Int64, *, radius: float, max_neighbours: int
) -> Int64:
    """Replace the edges of the hits that have too many neighbours by those to their nearest ones."""
    # The hit itself is among its own neighbours, hence one more; it falls to i > j below. Of several hits at
    # the very same place the tree may leave out the hit itself; then one edge too many is cut off again.
    k = min(max_neighbours + 1, len(embedding))
    _, near = tree.query(embedding[crowded], k=k, distance_upper_bound=np.nextafter(radius, np.inf))
    near = np.atleast_2d(near)
    source = np.repeat(crowded, near.shape[1])
    others = (near != crowded[:, None]) & (near < len(embedding))
    others &= np.cumsum(others, axis=1) <= max_neighbours
    keep = others.ravel() & (near.ravel() < source)
    limited = np.stack([source[keep], near.ravel()[keep]]).astype(np.int64, copy=False)
    untouched = edges[:, ~np.isin(edges[0], crowded)]
    return np.concatenate([untouched, limited], axis=1)
