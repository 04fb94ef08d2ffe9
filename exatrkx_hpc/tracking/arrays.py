"""NumPy, torch and CuPy arrays in, the same kind out, on the device where they are and without a copy.

Neither torch nor CuPy is imported before one of their arrays has come: the stages between the networks need
NumPy and SciPy alone.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An array of NumPy, torch or CuPy; a kernel answers in the kind that it was given.
AnyArray = Any


def is_tensor(array: AnyArray) -> bool:
    """Say whether `array` is a tensor of torch, on any device."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def on_gpu(array: AnyArray) -> bool:
    """Say whether `array` lies in the memory of a GPU: a CUDA tensor of torch or an array of CuPy."""
    return bool(array.is_cuda) if is_tensor(array) else hasattr(array, "__cuda_array_interface__")


def on_host(array: AnyArray) -> NDArray[Any]:
    """Return `array` as a NumPy array: itself, a view of a CPU tensor, or a copy of what lies on a GPU."""
    if is_tensor(array):
        return np.asarray(array.detach().cpu().numpy())
    return np.asarray(array.get() if on_gpu(array) else array)


def in_kind(result: NDArray[Any], like: AnyArray) -> AnyArray:
    """Return a NumPy `result` in the kind and on the device of `like`; on the CPU without a copy."""
    if is_tensor(like):
        tensor = sys.modules["torch"].from_numpy(result)
        return tensor.to(like.device) if like.is_cuda else tensor
    return sys.modules["cupy"].asarray(result) if on_gpu(like) else result
