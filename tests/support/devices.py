"""The kernels on a real GPU, for the cases that are marked `gpu`; without a GPU, these cases skip.

This module needs only NumPy, PyTorch and CuPy, so that `pytest --noconftest -m gpu` runs on a GPU machine with few
packages.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

#: Parameters of fixtures: CUDA tensors of torch, and arrays of CuPy.
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
CUPY = pytest.param("cupy", marks=pytest.mark.gpu)


def need_gpu() -> Any:
    """Return torch; skip the test without torch or a GPU, and fail it if there is a GPU but no CuPy."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build of torch warns about a missing driver
        found = torch.cuda.is_available()
    if not found:
        pytest.skip("GPU: no device on this machine")
    cupy_of_the_gpu()
    return torch


def cupy_of_the_gpu() -> Any:
    """Return CuPy; fail the test without it, because a skip on a GPU machine would hide that nothing was tested."""
    try:
        import cupy
    except ImportError as error:
        pytest.fail(f"there is a GPU, but no CuPy: {error}")
    return cupy


def edges_on_cuda(places: np.ndarray, **options: Any) -> np.ndarray:
    """Return `fixed_radius_edges` of a CUDA tensor, as a NumPy array."""
    torch = need_gpu()
    edges = fixed_radius_edges(torch.from_numpy(places).cuda(), **options)
    assert edges.is_cuda
    assert edges.dtype == torch.int64
    return edges.cpu().numpy()


def edges_on_cupy(places: np.ndarray, **options: Any) -> np.ndarray:
    """Return `fixed_radius_edges` of a CuPy array, as a NumPy array."""
    need_gpu()
    cupy = cupy_of_the_gpu()
    edges = fixed_radius_edges(cupy.asarray(places), **options)
    assert isinstance(edges, cupy.ndarray)
    return edges.get()


def labels_on_cuda(edges: np.ndarray, logits: np.ndarray, **options: Any) -> np.ndarray:
    """Return `label_components` of CUDA tensors, as a NumPy array."""
    torch = need_gpu()
    labels = label_components(torch.from_numpy(edges).cuda(), torch.from_numpy(logits).cuda(), **options)
    assert labels.is_cuda
    return labels.cpu().numpy()


def labels_on_cupy(edges: np.ndarray, logits: np.ndarray, **options: Any) -> np.ndarray:
    """Return `label_components` of CuPy arrays, as a NumPy array."""
    need_gpu()
    cupy = cupy_of_the_gpu()
    labels = label_components(cupy.asarray(edges), cupy.asarray(logits), **options)
    assert isinstance(labels, cupy.ndarray)
    return labels.get()
