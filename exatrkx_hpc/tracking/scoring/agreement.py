"""Compare two implementations of a stage: edges as sets, labels as partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Float32, Int64

#: Float32 sums of a few squares are off by less than this, relative to the radius.
RADIUS_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class EdgeAgreement:
    """How two sets of edges compare.

    `common` edges are in both, `at_radius` in one of them but so near the radius that rounding decides, and
    `different` in one of them without that excuse.
    """

    common: int
    at_radius: int
    different: int

    @property
    def agree(self) -> bool:
        """Whether nothing but rounding tells the two sets apart."""
        return self.different == 0


def compare_edges(
    first: Int64, second: Int64, embedding: Float32, *, radius: float, tolerance: float = RADIUS_TOLERANCE
) -> EdgeAgreement:
    """Compare two lists of edges `[2, E]` between the hits of one `embedding` `[N, D]`, whatever their order.

    An edge of only one of them is at the radius when its length is within `tolerance` times `radius` of it.
    """
    ours, theirs = _keys(first), _keys(second)
    differing = np.setxor1d(ours, theirs)
    ends = embedding[np.asarray([differing >> 32, differing & 0xFFFFFFFF])].astype(np.float64)
    length = np.linalg.norm(ends[0] - ends[1], axis=1)
    excused = int(np.count_nonzero(np.abs(length - radius) <= tolerance * radius))
    common = len(np.intersect1d(ours, theirs))
    return EdgeAgreement(common=common, at_radius=excused, different=len(differing) - excused)


def same_partition(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Say whether two lists of labels `[N]` put the same hits together, however they number the tracks."""
    if len(first) != len(second):
        return False
    _, ours = np.unique(first, return_inverse=True)
    _, theirs = np.unique(second, return_inverse=True)
    pairs = np.unique(ours * (len(second) + 1) + theirs)
    return len(pairs) == len(np.unique(ours)) == len(np.unique(theirs))


def hits_in_other_tracks(first: Int64, second: Int64) -> int:
    """Return how many hits are in a track of `first` `[N]` that `second` `[N]` does not have with the same hits."""
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
