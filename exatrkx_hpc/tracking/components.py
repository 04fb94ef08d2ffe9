"""Connected components: the hits that accepted edges join are one track."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from exatrkx_hpc.tracking import gpu
from exatrkx_hpc.tracking.arrays import in_kind, on_gpu, on_host
from exatrkx_hpc.tracking.constants import Float32, Int64
from exatrkx_hpc.tracking.filtering import apply_filter


def label_components(edges: Int64, logits: Float32, *, cut: float, n_hits: int | None = None) -> Int64:
    """Return one track label (int64) for each of `n_hits` hits, `[n_hits]`, from 0 on in the order of first hits.

    `edges` is `[2, E]` (int64), `logits` `[E]`, both NumPy, torch or CuPy arrays of one kind and device, and so
    is the answer. An edge joins its hits when the sigmoid of its logit is above `cut`. A hit without an accepted
    edge is a track of its own. Without `n_hits`, the largest hit number among the edges, plus one, stands for
    it: hits behind that one are then not known and get no label.
    """
    if n_hits is None:
        n_hits = int(edges.max()) + 1 if edges.shape[1] else 0
    labels: Int64
    if on_gpu(edges):
        labels = gpu.label_components(edges, logits, cut=cut, n_hits=n_hits)
    else:
        joined = apply_filter(on_host(edges), on_host(logits), cut=cut)
        labels = in_kind(_components(joined, n_hits), edges)
    return labels


def _components(edges: Int64, n_hits: int) -> Int64:
    if n_hits == 0:
        return np.empty(0, dtype=np.int64)
    _, labels = connected_components(_graph(edges, n_hits), directed=False)
    return labels.astype(np.int64)


def _graph(edges: Int64, n_hits: int) -> Any:  # noqa: ANN401 - a sparse matrix, in one of two forms
    """Return the graph as csgraph wants it: float64 in rows, int32 numbers, so that nothing is converted."""
    first = edges[0]
    weight: NDArray[np.float64] = np.ones(edges.shape[1])
    if not np.all(first[1:] >= first[:-1]):
        return coo_matrix((weight, (first, edges[1])), shape=(n_hits, n_hits))
    # frnn gives edges in the order of their first hits, and the filter keeps it: the rows are there already.
    ends = np.zeros(n_hits + 1, dtype=np.int32)
    np.cumsum(np.bincount(first, minlength=n_hits), out=ends[1:])
    return csr_matrix((weight, edges[1].astype(np.int32), ends), shape=(n_hits, n_hits))
