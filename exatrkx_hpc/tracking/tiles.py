"""The neighbour search of the CPU: find close pairs of points with small matrix products.

In eight dimensions a tree visits most of its leaves. Here the points are sorted into tiles of 128. Pairs of tiles
that are too far apart are skipped. The distances in the other pairs of tiles come from float32 products of 128 rows and
128 columns, which stay in the cache. Pairs of points that float32 cannot decide are decided in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Float32, Int64

Float64 = NDArray[np.float64]
Pairs = tuple[Int64, Int64]

#: Points per tile, a power of two. OpenBLAS uses one thread for such a small product. This is intended, because
#: the caller decides how many events run at once.
TILE = 128
_BITS = 7
#: Pairs of tiles per batch; their distances take 1 MB.
_BATCH = 16
#: A tile paired with itself holds each pair twice, and each point with itself; this puts one half out of reach.
_NOT_TWICE: Final = np.where(np.tri(TILE, k=-1, dtype=bool), 0.0, np.inf).astype(np.float32)
#: Largest number of pairs of boxes that are compared at once.
_BOXES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """N points in T tiles, such that row times column is the squared distance of two points in float32.

    `number` int64 `[T, 128]` holds the points' numbers, -1 in the empty places of the last tile; `slot` int64 `[N]`
    is the flat index of each point in `number`. `rows` `[T, 128, D+2]` and `columns` `[T, D+2, 128]` are float32;
    empty places are infinitely far away. `low`, `high` float32 `[T, D]` bound each tile. A product differs from the
    true squared distance by at most `slack`; `coarse` means that `slack` is not small.
    """

    number: Int64
    slot: Int64
    rows: Float32
    columns: Float32
    low: Float32
    high: Float32
    slack: float
    coarse: bool


def tiles_of(places: NDArray[Any], *, radius: float) -> Tiles:
    """Return the tiles of points `[N, D]`, N > 0, for a search within `radius`."""
    n, width = places.shape
    turned = _turned(places)
    n_tiles = -(-n // TILE)
    slab = -(-n_tiles // max(1, round(n_tiles**0.5))) * TILE
    # Cut the points along the widest axis into slabs, and sort each slab along the next axis: tiles are short in both.
    order = np.argsort(turned[:, 0])
    if n_tiles > 2:
        order = order[np.lexsort((turned[order, -1 if width == 1 else 1], np.arange(n) // slab))]
    turned = turned[order]
    square = np.einsum("ij,ij->i", turned, turned, dtype=np.float64)
    first = np.arange(0, n, TILE)
    # Rounding of the coordinates, of the D + 2 products and of their sum, in units of the largest square.
    slack = float(16 * (width + 2) * 2.0**-24 * square.max())
    number = np.full(n_tiles * TILE, -1, dtype=np.int64)
    number[:n] = order
    slot = np.empty(n, dtype=np.int64)
    slot[order] = np.arange(n)
    rows, columns = _factors(turned, square, n_tiles)
    return Tiles(
        number=number.reshape(n_tiles, TILE),
        slot=slot,
        rows=rows,
        columns=columns,
        low=np.minimum.reduceat(turned, first),
        high=np.maximum.reduceat(turned, first),
        slack=slack,
        coarse=not slack < 0.1 * radius**2,
    )


def close_pairs(tiles: Tiles, places: Float64, *, radius: float) -> Iterator[Pairs]:
    """Yield each pair of points at most `radius` apart once, as (larger number, smaller number), in any order."""
    reach = np.float32(radius**2 + tiles.slack)
    distance = np.empty((_BATCH, TILE, TILE), dtype=np.float32)
    for a, b in _close_tiles(tiles, float(reach)):
        found = np.matmul(tiles.rows[a], tiles.columns[b], out=distance[: len(a)])
        for same in np.flatnonzero(a == b):
            found[same] += _NOT_TWICE
        found = found.reshape(-1)
        at = np.flatnonzero(found <= reach)
        row, column = at >> _BITS, (at >> 2 * _BITS << _BITS) | (at & (TILE - 1))
        first, second = tiles.number[a].reshape(-1)[row], tiles.number[b].reshape(-1)[column]
        first, second = _decided(tiles, places, first, second, found[at], radius=radius)
        yield np.maximum(first, second), np.minimum(first, second)


def close_to(tiles: Tiles, places: Float64, points: Int64, *, radius: float) -> Pairs:
    """Return all pairs (one of `points`, another point) at most `radius` apart, in any order."""
    reach = np.float32(radius**2 + tiles.slack)
    rows = tiles.rows.reshape(-1, tiles.rows.shape[2])[tiles.slot[points]]
    if tiles.coarse:
        every = np.arange(len(places))
        first, second = np.repeat(points, len(every)), np.tile(every, len(points))
    else:
        tile, row, column = np.nonzero(np.matmul(rows, tiles.columns) <= reach)
        first, second = points[row], tiles.number[tile, column]
    close = (first != second) & (squared_distance(places, first, second) <= radius**2)
    return first[close], second[close]


def squared_distance(places: Float64, first: Int64, second: Int64) -> Float64:
    """Return the squared distances of pairs of points, summed axis by axis, as on the GPU."""
    total = np.zeros(len(first))
    for axis in places.T:
        step = axis[first] - axis[second]
        total += step * step
    return total


def _turned(places: NDArray[Any]) -> Float32:
    """Return the points relative to their mean, rotated so that the first axes are the widest."""
    centred = places - places.mean(axis=0, dtype=np.float64)
    # einsum is slow for large matrices, but these are narrow, and it starts no threads.
    _, axes = np.linalg.eigh(np.einsum("ni,nj->ij", centred, centred))
    turned: Float32 = np.einsum("ni,ij->nj", centred, axes[:, ::-1]).astype(np.float32)
    return turned


def _factors(points: Float32, square: Float64, n_tiles: int) -> tuple[Float32, Float32]:
    """Return rows (x, |x|^2, 1) and columns (-2y, 1, |y|^2), whose products are |x - y|^2."""
    n, width = points.shape
    rows = np.zeros((n_tiles * TILE, width + 2), dtype=np.float32)
    rows[:n, :width] = points
    rows[:, width] = np.inf
    rows[:n, width] = square
    rows[:, width + 1] = 1.0
    rows = rows.reshape(n_tiles, TILE, width + 2)
    columns = np.empty((n_tiles, width + 2, TILE), dtype=np.float32)
    np.multiply(rows[:, :, :width].transpose(0, 2, 1), -2.0, out=columns[:, :width])
    columns[:, width] = 1.0
    columns[:, width + 1] = rows[:, :, width]
    return rows, columns


def _close_tiles(tiles: Tiles, reach: float) -> Iterator[Pairs]:
    """Yield, in batches, the pairs of tiles (a, b <= a) whose bounds are at most the root of `reach` apart."""
    n = len(tiles.low)
    step = max(1, _BOXES // n)
    for begin in range(0, n, step):
        end = min(begin + step, n)
        above = tiles.low[begin:end, None] - tiles.high[None, :end]
        below = tiles.low[None, :end] - tiles.high[begin:end, None]
        gap = np.maximum(np.maximum(above, below), 0.0)
        near = np.einsum("abk,abk->ab", gap, gap) <= reach
        a, b = np.nonzero(near & (np.arange(end) <= np.arange(begin, end)[:, None]))
        for at in range(0, len(a), _BATCH):
            yield a[at : at + _BATCH] + begin, b[at : at + _BATCH]


def _decided(
    tiles: Tiles, places: Float64, first: Int64, second: Int64, approximate: Float32, *, radius: float
) -> Pairs:
    """Drop the pairs that are too far apart; float64 decides where the approximate squared distance cannot."""
    doubtful = np.flatnonzero(approximate >= radius**2 - tiles.slack)
    if not len(doubtful):
        return first, second
    far = squared_distance(places, first[doubtful], second[doubtful]) > radius**2
    keep = np.ones(len(first), dtype=bool)
    keep[doubtful[far]] = False
    return first[keep], second[keep]
