"""The kernels on a GPU, through CuPy: torch's CUDA tensors and CuPy's arrays in, the same kind out.

Arrays change hands by DLPack, which copies nothing. For torch's tensors everything runs in the stream that torch
works in, and takes its memory from torch's pool, so that neither library waits for the other, takes memory that the
other still reads, or keeps memory that the other lacks. Not yet run on a GPU: the kernels and their launches are
tested by a CPU twin (docs/concepts/tracking.md).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exatrkx_hpc.tracking import kernels
from exatrkx_hpc.tracking.arrays import AnyArray, is_tensor
from exatrkx_hpc.tracking.constants import Scores

_SOURCE = Path(__file__).with_name("kernels.cu")
#: More than the largest embedding in use; the kernels hold a tile of 128 hits in shared memory.
_MAX_DIMENSIONS = 64


class MissingCupy(ImportError):
    """CuPy is not installed, or does not fit the CUDA of this machine."""


class CupyLauncher:
    """Runs the kernels with CuPy, compiled for embeddings of `dimensions` axes; components need none."""

    def __init__(self, dimensions: int = 8) -> None:
        """Take CuPy; the kernels are compiled at the first use on a device, and CuPy keeps them on disk."""
        self.xp = _cupy()
        self._module = _module(dimensions)

    def launch(self, kernel: str, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:  # noqa: ANN401
        """Start a kernel in the current stream; see `kernels.Launcher`."""
        self._module.get_function(kernel)(blocks, (threads,), arguments)


def fixed_radius_edges(embedding: AnyArray, *, radius: float, max_neighbours: int) -> AnyArray:
    """Return what `frnn.fixed_radius_edges` promises for an array on a GPU; raises MissingCupy."""
    width = embedding.shape[1]
    if not 1 <= width <= _MAX_DIMENSIONS:
        raise ValueError(f"the embedding has {width} columns; the kernels take 1 to {_MAX_DIMENSIONS}")
    with _beside(embedding):
        places = as_cupy(embedding)
        edges = kernels.edges_within(CupyLauncher(width), places, radius=radius, max_neighbours=max_neighbours)
        return _back(edges, embedding)


def label_components(
    edges: AnyArray, values: AnyArray, *, cut: float, n_hits: int, scores: Scores = "logits"
) -> AnyArray:
    """Return what `components.label_components` promises for arrays on a GPU; raises MissingCupy."""
    with _beside(edges):
        given = as_cupy(edges), as_cupy(values)
        labels = kernels.labels_of(CupyLauncher(), *given, cut=cut, n_hits=n_hits, scores=scores)
        return _back(labels, edges)


def as_cupy(array: AnyArray) -> AnyArray:
    """Return an array on a GPU as CuPy's, in the same memory; raises MissingCupy."""
    if not is_tensor(array):
        return array
    if not array.numel():  # has no memory to share
        return _cupy().empty(tuple(array.shape), dtype=str(array.dtype).removeprefix("torch."))
    return _cupy().from_dlpack(array.detach())


def as_tensor(array: AnyArray) -> AnyArray:
    """Return an array of CuPy as a tensor of torch, in the same memory."""
    torch = importlib.import_module("torch")
    if not array.size:
        return torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device=f"cuda:{array.device.id}")
    return torch.from_dlpack(array)


def _back(result: AnyArray, like: AnyArray) -> AnyArray:
    return as_tensor(result) if is_tensor(like) else result


@contextlib.contextmanager
def _beside(array: AnyArray) -> Iterator[None]:
    """Let CuPy work on the array's device, and for a tensor in the stream that torch works in there."""
    cupy = _cupy()
    if not is_tensor(array):
        with array.device:
            yield
        return
    torch, device = importlib.import_module("torch"), array.device.index
    stream, memory = torch.cuda.current_stream(device), _memory_of_torch()
    with (
        cupy.cuda.Device(device),
        _as_cupy_stream(device, stream.cuda_stream),
        cupy.cuda.using_allocator(memory.malloc),
    ):
        yield


class _Handle:
    """A stream by its address, as CUDA's stream protocol wants it; torch's own has that only since 2.9."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


# Kept: there are CuPy releases in which a Stream made of another library's destroys that one at its own end. Torch has
# 32 streams a device and hands them out again and again.
@functools.cache
def _as_cupy_stream(device: int, address: int) -> Any:  # noqa: ANN401 - a cupy.cuda.Stream
    """Return the stream at an address, of the current device, as CuPy's; CuPy 14 warns of ExternalStream."""
    cuda = _cupy().cuda
    if hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(_Handle(address))
    return cuda.ExternalStream(address, device)


@functools.cache
def _memory_of_torch() -> Any:  # noqa: ANN401 - a cupy.cuda.PythonFunctionAllocator
    """Return what gives CuPy memory of torch's pool, for the stream that torch works in."""
    cuda = importlib.import_module("torch").cuda

    def take(size: int, device: int) -> int:
        address: int = cuda.caching_allocator_alloc(size, device, cuda.current_stream(device).cuda_stream)
        return address

    def leave(address: int, device: int) -> None:
        cuda.caching_allocator_delete(address)

    return _cupy().cuda.PythonFunctionAllocator(take, leave)


@functools.cache
def _module(dimensions: int) -> Any:  # noqa: ANN401 - a cupy.RawModule
    options = ("--std=c++14", f"-DDIMENSIONS={dimensions}")
    return _cupy().RawModule(code=_SOURCE.read_text(), options=options)


def _cupy() -> Any:  # noqa: ANN401 - CuPy is an optional package
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        remedy = f"pip install 'exatrkx-hpc[{_extra()}]'"
        raise MissingCupy(f"arrays on a GPU need CuPy ({error}); {remedy}") from error


def _extra() -> str:
    """Return the extra with the CuPy for the CUDA of this environment's torch."""
    cuda = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None) or "12"
    return f"gpu-cuda{cuda.partition('.')[0]}"
