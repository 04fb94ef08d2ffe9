"""Fixed-radius nearest neighbours: the hits that are close to each other in the embedding."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from exatrkx_hpc.tracking import gpu
from exatrkx_hpc.tracking.arrays import AnyArray, in_kind, is_tensor, on_gpu, on_host
from exatrkx_hpc.tracking.constants import EdgeOrder, Float32, Int64
from exatrkx_hpc.tracking.tiles import Float64, Tiles, close_pairs, close_to, squared_distance, tiles_of

#: An edge is one 64-bit key with the larger hit number in the upper bits, so that sorting the keys sorts the edges.
_BITS = 32
_LOWER = (1 << _BITS) - 1
#: After this many new pairs, the pairs of crowded hits are dropped: the memory stays near N x K.
_MANY = 1 << 22
#: Crowded hits per batch.
_BLOCK = 32


def fixed_radius_edges(embedding: Float32, *, radius: float, max_neighbours: int) -> Int64:
    """Return the candidate edges `[2, E]` (int64) of an embedding `[N, D]` (float32), each pair once.

    Row 0 holds the larger hit number i, row 1 the smaller j; the edges are sorted by i, then j. Edge (i, j) is
    kept when the two are at most `radius` apart and j is one of the `max_neighbours` hits nearest to i, as in
    the original service, which queries the neighbours of every hit and then keeps i > j. Of two neighbours at the
    same distance, the smaller number counts as nearer. Distances are compared in float64.

    `embedding` is a NumPy array, a torch tensor or a CuPy array; the result has the same kind and device. All numbers
    of the embedding must be finite.
    """
    edges: Int64
    if on_gpu(embedding):
        edges = gpu.fixed_radius_edges(embedding, radius=radius, max_neighbours=max_neighbours)
    else:
        edges = in_kind(_edges(on_host(embedding), radius, max_neighbours), embedding)
    return edges


def in_order(edges: Int64, order: EdgeOrder, radii: AnyArray) -> Int64:
    """Return candidate edges `[2, E]` in the order for the edge networks; `radii` `[N]` orders hits from the beam.

    `number` leaves the edges as `fixed_radius_edges` returns them. With `radius`, row 0 is the inner hit or, for two
    hits at one radius, the hit of the larger number. `both` appends each pair the other way round, `[2, 2 E]`. Arrays
    are of NumPy, torch or CuPy, of one kind and device, and so is the result.
    """
    ordered: AnyArray = edges
    if order != "number":
        turned = ordered.flip(0) if is_tensor(ordered) else ordered[::-1]
        module = sys.modules["torch"] if is_tensor(ordered) else np
        if order == "both":
            ordered = module.concatenate([ordered, turned], 1)
        else:
            ordered = module.where(radii[edges[0]] > radii[edges[1]], turned, ordered)
    result: Int64 = ordered
    return result


def _edges(places: NDArray[Any], radius: float, max_neighbours: int) -> Int64:
    if len(places) < 2:
        return np.empty((2, 0), dtype=np.int64)
    tiles = tiles_of(places, radius=radius)
    search = _Search(places.astype(np.float64), radius=radius, max_neighbours=max_neighbours)
    if tiles.coarse:
        # The embedding is too wide for float32 to resolve the radius: few hits are near, and a tree finds them fast.
        pairs = cKDTree(places).query_pairs(radius, output_type="ndarray")
        search.add(pairs[:, 1], pairs[:, 0])
    else:
        for larger, smaller in close_pairs(tiles, search.places, radius=radius):
            search.add(larger, smaller)
    return search.edges(tiles)


class _Search:
    """Collects pairs of hits, counts each hit's neighbours, and drops the pairs of crowded hits."""

    def __init__(self, places: Float64, *, radius: float, max_neighbours: int) -> None:
        self.places = places
        self.radius = radius
        self.max_neighbours = max_neighbours
        self.degree = np.zeros(len(places), dtype=np.int64)
        self.kept = np.empty(0, dtype=np.int64)
        self.fresh: list[Int64] = []
        self.n_fresh = 0

    def add(self, larger: Int64, smaller: Int64) -> None:
        """Add pairs of hits; each pair may be added only once per search."""
        self.fresh.append((larger << _BITS) | smaller)
        self.n_fresh += len(larger)
        if self.n_fresh > _MANY:
            self._settle()

    def edges(self, tiles: Tiles) -> Int64:
        """Return the sorted edges `[2, E]`."""
        self._settle()
        crowded = np.flatnonzero(self.degree > self.max_neighbours)
        limited = [self._nearest(tiles, crowded[at : at + _BLOCK]) for at in range(0, len(crowded), _BLOCK)]
        keys = np.concatenate([self.kept, *limited]) if limited else self.kept
        keys.sort()
        edges = np.empty((2, len(keys)), dtype=np.int64)
        np.right_shift(keys, _BITS, out=edges[0])
        np.bitwise_and(keys, _LOWER, out=edges[1])
        return edges

    def _settle(self) -> None:
        """Count the new pairs, and drop all pairs whose larger hit is crowded."""
        fresh = np.concatenate(self.fresh) if self.fresh else self.kept[:0]
        self.degree += np.bincount(fresh >> _BITS, minlength=len(self.degree))
        self.degree += np.bincount(fresh & _LOWER, minlength=len(self.degree))
        keys = np.concatenate([self.kept, fresh]) if len(self.kept) else fresh
        crowded = self.degree > self.max_neighbours
        self.kept = keys[~crowded[keys >> _BITS]] if crowded.any() else keys
        self.fresh, self.n_fresh = [], 0

    def _nearest(self, tiles: Tiles, crowded: Int64) -> Int64:
        """Return, as keys, the edges from `crowded` hits to those nearest neighbours that have a smaller number."""
        hit, other = close_to(tiles, self.places, crowded, radius=self.radius)
        order = np.lexsort((other, squared_distance(self.places, hit, other), hit))
        hit, other = hit[order], other[order]
        rank = np.arange(len(hit)) - np.searchsorted(hit, hit)
        keep = (rank < self.max_neighbours) & (other < hit)
        keys: Int64 = (hit[keep] << _BITS) | other[keep]
        return keys
