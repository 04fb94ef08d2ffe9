"""Compare two implementations of a stage: edges as sets, labels as partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Float32, Int64

#: Largest error of a length from float32 sums of a few squares, relative to the radius.
RADIUS_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class EdgeAgreement:
    """Comparison of two sets of edges.

    `common` edges are in both sets. `at_radius` edges are in only one set, but so near the radius that rounding
    decides. `different` edges are in only one set for another reason.
    """

    common: int
    at_radius: int
    different: int

    @property
    def agree(self) -> bool:
        """Whether the two sets differ only by rounding."""
        return self.different == 0


def compare_edges(
    first: Int64, second: Int64, embedding: Float32, *, radius: float, tolerance: float = RADIUS_TOLERANCE
) -> EdgeAgreement:
    """Compare two lists of edges `[2, E]`, in any order, between the hits of one `embedding` `[N, D]`.

    An edge in only one list is at the radius if its length differs from `radius` by at most `tolerance` times `radius`.
    """
    ours, theirs = _keys(first), _keys(second)
    differing = np.setxor1d(ours, theirs)
    ends = embedding[np.asarray([differing >> 32, differing & 0xFFFFFFFF])].astype(np.float64)
    length = np.linalg.norm(ends[0] - ends[1], axis=1)
    excused = int(np.count_nonzero(np.abs(length - radius) <= tolerance * radius))
    common = len(np.intersect1d(ours, theirs))
    return EdgeAgreement(common=common, at_radius=excused, different=len(differing) - excused)


def same_partition(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether two lists of labels `[N]` group the hits in the same way, whatever the numbers of the tracks."""
    if len(first) != len(second):
        return False
    _, ours = np.unique(first, return_inverse=True)
    _, theirs = np.unique(second, return_inverse=True)
    pairs = np.unique(ours * (len(second) + 1) + theirs)
    return len(pairs) == len(np.unique(ours)) == len(np.unique(theirs))


def hits_in_other_tracks(first: Int64, second: Int64) -> int:
    """Return the number of hits whose track in `first` `[N]` has not the same hits as their track in `second` `[N]`."""
    if same_partition(first, second):
        return 0
    _, number, size = np.unique(first, return_inverse=True, return_counts=True)
    _, their_number, their_size = np.unique(second, return_inverse=True, return_counts=True)
    pair = number * (len(second) + 1) + their_number
    _, at, shared = np.unique(pair, return_inverse=True, return_counts=True)
    return int(np.count_nonzero((shared[at] != size[number]) | (shared[at] != their_size[their_number])))


def _keys(edges: Int64) -> Int64:
    """Return each edge once, as one number: its larger hit number in the upper half, the other in the lower."""
    keys: Int64 = np.unique((edges.max(axis=0) << 32) | edges.min(axis=0))
    return keys
