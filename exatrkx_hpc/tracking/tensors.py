"""Validate the tensors of a stage: errors name the tensor and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features

#: Without a list of hits, the largest hit number sets the size of the output, so it must be bounded. The
#: largest events have under a million hits, and one wrong number must not use up the server's memory.
MAX_HITS = 10_000_000


class BadTensor(ValueError):
    """An invalid tensor; the message names the tensor, what it contains and what was expected."""


def check_hits(name: str, array: NDArray[Any], features: Features = DEFAULT_FEATURES) -> None:
    """Raise BadTensor unless `array` is hits, float32 `[N, F]`, each finite and within the range of its feature."""
    _check_table_type(name, array, columns=len(features))
    good = (array >= features.lowest) & (array <= features.highest)  # false for a NaN, too
    if good.all():
        return
    check_table(name, array, columns=len(features))
    row, column = np.argwhere(~good)[0]
    feature = features.columns[column]
    found = f"{feature} = {array[row, column]:g} in row {row}"
    raise BadTensor(f"{name} has {found}, which is out of range; expected {feature.least:g} to {feature.most:g}")


def check_table(name: str, array: NDArray[Any], *, columns: int) -> None:
    """Raise BadTensor unless `array` is float32 `[N, columns]` and every number in it is finite."""
    _check_table_type(name, array, columns=columns)
    finite = np.isfinite(array)
    if not finite.all():
        row = np.argmin(finite.all(axis=1))
        raise BadTensor(f"{name} has a NaN or an infinity in row {row}; expected finite numbers")


def _check_table_type(name: str, array: NDArray[Any], *, columns: int) -> None:
    _check_type(name, array, np.float32)
    if array.ndim != 2 or array.shape[1] != columns:
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected [N, {columns}]")


def _check_type(name: str, array: NDArray[Any], wanted: type[np.generic]) -> None:
    if array.dtype != wanted:
        raise BadTensor(f"{name} is {array.dtype}; expected {np.dtype(wanted)}")


def check_edges(name: str, array: NDArray[Any], *, n_hits: int | None = None) -> None:
    """Raise BadTensor unless `array` is int64 `[2, E]` and its hit numbers are between 0 and `n_hits` - 1.

    Without `n_hits`, the limit is MAX_HITS.
    """
    _check_type(name, array, np.int64)
    if array.ndim != 2 or array.shape[0] != 2:
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected [2, E]")
    limit = MAX_HITS if n_hits is None else n_hits
    if array.size and not (array.min() >= 0 and array.max() < limit):
        found = f"{array.min()} to {array.max()}"
        raise BadTensor(f"{name} has hit numbers from {found}; expected 0 or more and less than {limit}")


def check_scores(name: str, array: NDArray[Any], *, n_edges: int) -> None:
    """Raise BadTensor unless `array` holds one float32 score per edge, as `[E]` or `[E, 1]`, without NaN."""
    _check_type(name, array, np.float32)
    if array.shape not in ((n_edges,), (n_edges, 1)):
        raise BadTensor(f"{name} has shape {list(array.shape)}; expected one score for each of {n_edges} edges")
    bad = np.isnan(array).reshape(-1)
    if bad.any():
        raise BadTensor(f"{name} has a NaN for edge {np.argmax(bad)}; expected numbers")
