"""Check on a sample that a network takes and returns the tensors of the pipeline's contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.devices import reason
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features, features_of
from exatrkx_hpc.tracking.tensors import BadTensor

#: Hits in a barrel, and edges between them; their numbers differ, so that no shape looks like another.
_HITS: Final = np.array([[0.01, 0.1, 0.1], [0.02, 0.1, 0.2], [0.04, 0.1, 0.4]], dtype=np.float32)
_EDGES: Final = np.array([[1, 2], [0, 1]], dtype=np.int64)


def sample_of(features: Features, inputs: int) -> tuple[NDArray[Any], ...]:
    """Return three hits of these features and, for two `inputs`, two edges between them."""
    return (features_of(_HITS, features)[0], _EDGES)[:inputs]


def check_signature(
    network: Callable[..., NDArray[Any]],
    *,
    inputs: Sequence[str],
    output: str,
    columns: Sequence[int] = (),
    features: Features = DEFAULT_FEATURES,
) -> None:
    """Raise BadTensor unless `network` takes hits, and edges if it has two `inputs`, and returns the right tensor.

    `network` takes arrays and returns one array: float32, one row per edge (per hit, with one input), with the further
    axes `columns`; an axis of -1 has any size. A hit has the columns of `features`. `inputs` and `output` are names for
    the message. The network is called twice: TorchScript profiles its first run and compiles at the second, and no
    event should wait for this.
    """
    sample = sample_of(features, len(inputs))
    kinds = (f"float32 [N, {len(features)}]", "int64 [2, E]")
    takes = " and ".join(f"{name} {kind}" for name, kind in zip(inputs, kinds, strict=False))
    try:
        answer = [network(*sample) for _ in range(2)][-1]
    except Exception as error:  # a `raise` in a TorchScript program is no RuntimeError
        raise BadTensor(f"the network does not take {takes} and give one tensor: {reason(error)}") from error
    shape = (sample[-1].shape[1] if len(inputs) > 1 else len(_HITS), *columns)
    fits = answer.ndim == len(shape) and len(answer) == shape[0] if -1 in shape else answer.size == math.prod(shape)
    if answer.dtype != np.float32 or not fits:
        rows = f"{len(_HITS)} hits" + (f" and {_EDGES.shape[1]} edges" if len(inputs) > 1 else "")
        found = f"{answer.dtype} {list(answer.shape)}"
        raise BadTensor(f"the network gives {output} as {found} for {rows}; expected float32 {list(shape)}")
