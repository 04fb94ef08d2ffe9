"""Helpers for functions that take NumPy, torch or CuPy arrays and return the same kind, on the same device.

This module never imports torch or CuPy itself, because the stages between the networks need only NumPy and SciPy.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A NumPy, torch or CuPy array; a kernel returns the kind of its input.
AnyArray = Any


def is_tensor(array: AnyArray) -> bool:
    """Return whether `array` is a torch tensor, on any device."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def on_gpu(array: AnyArray) -> bool:
    """Return whether `array` is in GPU memory: a CUDA tensor of torch or a CuPy array."""
    return bool(array.is_cuda) if is_tensor(array) else hasattr(array, "__cuda_array_interface__")


def on_host(array: AnyArray) -> NDArray[Any]:
    """Return `array` as a NumPy array: itself, a view of a CPU tensor, or a copy from a GPU."""
    if is_tensor(array):
        return np.asarray(array.detach().cpu().numpy())
    return np.asarray(array.get() if on_gpu(array) else array)


def in_kind(result: NDArray[Any], like: AnyArray) -> AnyArray:
    """Convert a NumPy `result` to the kind and the device of `like`; without a copy on the CPU."""
    if is_tensor(like):
        tensor = sys.modules["torch"].from_numpy(result)
        return tensor.to(like.device) if like.is_cuda else tensor
    return sys.modules["cupy"].asarray(result) if on_gpu(like) else result
