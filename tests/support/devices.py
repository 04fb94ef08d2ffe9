"""The kernels on a real GPU, for the cases that are marked `gpu`; the tests that use them skip, visibly, without one.

Nothing here needs more than NumPy, PyTorch and CuPy, so that `pytest --noconftest -m gpu` runs where there is a GPU
and little else.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

#: Parameters of a fixture that runs on a CUDA tensor of torch, and on an array of CuPy.
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
CUPY = pytest.param("cupy", marks=pytest.mark.gpu)


def need_gpu() -> Any:
    """Return torch; skip the test where it sees no GPU, or where CuPy is missing."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a build for CUDA warns of a missing driver
        found = torch.cuda.is_available()
    if not found:
        pytest.skip("GPU: no device on this machine")
    cupy_of_the_gpu()
    return torch


def cupy_of_the_gpu() -> Any:
    """Return CuPy; fail where there is a GPU and no CuPy, because nothing would have been tested."""
    try:
        import cupy
    except ImportError as error:
        pytest.fail(f"there is a GPU, but no CuPy: {error}")
    return cupy


def edges_on_cuda(places: np.ndarray, **options: Any) -> np.ndarray:
    """`fixed_radius_edges` of a tensor on the GPU."""
    torch = need_gpu()
    edges = fixed_radius_edges(torch.from_numpy(places).cuda(), **options)
    assert edges.is_cuda
    assert edges.dtype == torch.int64
    return edges.cpu().numpy()


def edges_on_cupy(places: np.ndarray, **options: Any) -> np.ndarray:
    """`fixed_radius_edges` of an array of CuPy."""
    need_gpu()
    cupy = cupy_of_the_gpu()
    edges = fixed_radius_edges(cupy.asarray(places), **options)
    assert isinstance(edges, cupy.ndarray)
    return edges.get()


def labels_on_cuda(edges: np.ndarray, logits: np.ndarray, **options: Any) -> np.ndarray:
    """`label_components` of tensors on the GPU."""
    torch = need_gpu()
    labels = label_components(torch.from_numpy(edges).cuda(), torch.from_numpy(logits).cuda(), **options)
    assert labels.is_cuda
    return labels.cpu().numpy()


def labels_on_cupy(edges: np.ndarray, logits: np.ndarray, **options: Any) -> np.ndarray:
    """`label_components` of arrays of CuPy."""
    need_gpu()
    cupy = cupy_of_the_gpu()
    labels = label_components(cupy.asarray(edges), cupy.asarray(logits), **options)
    assert isinstance(labels, cupy.ndarray)
    return labels.get()
