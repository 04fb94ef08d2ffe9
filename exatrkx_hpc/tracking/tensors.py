"""What a stage may be given: checks that say which tensor is wrong and what was expected of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Without a list of hits the largest hit number sets the size of the answer, so it must be bounded: the
#: largest events have under a million hits, and one bad number must not take the server's memory.
MAX_HITS = 10_000_000


class BadTensor(ValueError):
    """A tensor that a stage cannot use; the message names it, what it is and what was expected."""


def check_table(name: str, array: NDArray[Any], *, columns: int) -> None:
    """Raise BadTensor unless `array` is `[N, columns]` and every number in it is finite."""
    if array.ndim != 2 or array.shape[1] != columns:
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected [N, {columns}]")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise BadTensor(f"{name} has a NaN or an infinity in row {bad[0]}; expected finite numbers")


def check_edges(name: str, array: NDArray[Any], *, n_hits: int | None = None) -> None:
    """Raise BadTensor unless `array` is `[2, E]` and its hit numbers are between 0 and `n_hits` - 1.

    Without `n_hits`, MAX_HITS takes its place.
    """
    if array.ndim != 2 or array.shape[0] != 2:
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected [2, E]")
    limit = MAX_HITS if n_hits is None else n_hits
    if array.size and not (array.min() >= 0 and array.max() < limit):
        found = f"{array.min()} to {array.max()}"
        raise BadTensor(f"{name} has hit numbers from {found}; expected 0 or more and less than {limit}")


def check_scores(name: str, array: NDArray[Any], *, n_edges: int) -> None:
    """Raise BadTensor unless `array` holds one score an edge, as `[E]` or `[E, 1]`, and none is NaN."""
    if array.shape not in ((n_edges,), (n_edges, 1)):
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected one score for each of {n_edges} edges")
    bad = np.flatnonzero(np.isnan(array).reshape(-1))
    if len(bad):
        raise BadTensor(f"{name} has a NaN for edge {bad[0]}; expected numbers")
