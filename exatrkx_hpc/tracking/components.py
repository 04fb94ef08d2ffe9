"""Connected components: the hits that accepted edges join are one track."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from exatrkx_hpc.tracking.constants import Float32, Int64
from exatrkx_hpc.tracking.filtering import sigmoid


def label_components(edges: Int64, logits: Float32, *, cut: float, n_hits: int | None = None) -> Int64:
    """Return one track label (int64) for each of `n_hits` hits, `[n_hits]`.

    `edges` is `[2, E]` (int64), `logits` `[E]`; an edge joins its hits when the sigmoid of its logit is above
    `cut`. A hit without an accepted edge is a track of its own. Without `n_hits`, the largest hit number
    among the edges, plus one, stands for it: hits behind that one are then not known and get no label.
    """
    if n_hits is None:
        n_hits = int(edges.max()) + 1 if edges.size else 0
    if n_hits == 0:
        return np.empty(0, dtype=np.int64)
    accepted = edges[:, sigmoid(logits.reshape(-1)) > cut]
    joined = coo_matrix((np.ones(accepted.shape[1], dtype=np.int8), (accepted[0], accepted[1])), shape=(n_hits, n_hits))
    _, labels = connected_components(joined, directed=False)
    return labels.astype(np.int64)
