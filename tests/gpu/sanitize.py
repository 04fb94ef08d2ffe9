"""Every kernel on small events, for `compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py`.

The kernels run through CuPy alone, without a memory pool, which would hide reads and writes out of bounds. What they
give is compared with the CPU; the exit status is 1 if anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cupy
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

#: Hits, columns of the embedding, neighbours that are kept: one tile and more, none and all hits crowded.
CASES = (
    (0, 8, 500),
    (1, 8, 5),
    (2, 8, 500),
    (127, 8, 500),
    (128, 8, 1),
    (129, 8, 3),
    (700, 8, 500),
    (700, 8, 7),
    (300, 64, 9),
    (300, 1, 9),
)


def main() -> int:
    """Run each case on both; return how many differ."""
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(3)
    differing = 0
    for n, width, limit in CASES:
        places = rng.normal(0, 0.9, (n, width)).astype(np.float32)
        places[::5] = places[:1]  # many in one place: ties are decided by number
        ours = fixed_radius_edges(places, radius=1.6, max_neighbours=limit)
        theirs = fixed_radius_edges(cupy.asarray(places), radius=1.6, max_neighbours=limit)
        scores = rng.normal(0, 3, ours.shape[1]).astype(np.float32)
        labels = label_components(ours, scores, cut=0.75, n_hits=n)
        labels_there = label_components(cupy.asarray(ours), cupy.asarray(scores), cut=0.75, n_hits=n)
        equal = np.array_equal(ours, theirs.get()) and np.array_equal(labels, labels_there.get())
        print(f"{n} hits, {width} columns, {limit} neighbours: {ours.shape[1]} edges, equal={equal}", flush=True)
        differing += not equal
    # Many threads join the same few hits at once.
    edges = np.stack([rng.permutation(3000), rng.integers(0, 7, 3000)])
    scores = np.full(3000, 9, np.float32)
    labels = label_components(edges, scores, cut=0.75, n_hits=3000)
    labels_there = label_components(cupy.asarray(edges), cupy.asarray(scores), cut=0.75, n_hits=3000)
    equal = np.array_equal(labels, labels_there.get())
    print(f"3000 hits that meet at seven: equal={equal}", flush=True)
    return differing + (not equal)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
