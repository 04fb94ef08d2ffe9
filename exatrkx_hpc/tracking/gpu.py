"""The kernels on a GPU, through CuPy: torch's CUDA tensors or CuPy arrays in, the same kind out.

The libraries exchange arrays by DLPack, without a copy. For torch tensors, CuPy uses torch's current stream and torch's
memory pool. So neither library waits for the other, reuses memory that the other still reads, or keeps memory that the
other needs. Not tested on a GPU: a CPU twin tests the kernels and their launches (docs/concepts/tracking.md).
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
#: More than the largest embedding in use; there is a limit because the kernels hold 128 hits in shared memory.
_MAX_DIMENSIONS = 64


class MissingCupy(ImportError):
    """CuPy is not installed, or does not fit the CUDA of this machine."""


class CupyLauncher:
    """Runs the kernels with CuPy, compiled for embeddings of `dimensions` axes; components do not use the axes."""

    def __init__(self, dimensions: int = 8) -> None:
        """Import CuPy; it compiles the kernels at the first use on a device, and caches them on disk."""
        self.xp = _cupy()
        self._module = _module(dimensions)

    def launch(self, kernel: str, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:  # noqa: ANN401
        """Start a kernel in the current stream; see `kernels.Launcher`."""
        self._module.get_function(kernel)(blocks, (threads,), arguments)


def fixed_radius_edges(embedding: AnyArray, *, radius: float, max_neighbours: int) -> AnyArray:
    """Compute `frnn.fixed_radius_edges` on a GPU; raises MissingCupy, ValueError for 0 or more than 64 columns."""
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
    """Compute `components.label_components` on a GPU; raises MissingCupy."""
    with _beside(edges):
        given = as_cupy(edges), as_cupy(values)
        labels = kernels.labels_of(CupyLauncher(), *given, cut=cut, n_hits=n_hits, scores=scores)
        return _back(labels, edges)


def as_cupy(array: AnyArray) -> AnyArray:
    """Return an array on a GPU as a CuPy array in the same memory; raises MissingCupy."""
    if not is_tensor(array):
        return array
    if not array.numel():  # has no memory to share
        return _cupy().empty(tuple(array.shape), dtype=str(array.dtype).removeprefix("torch."))
    return _cupy().from_dlpack(array.detach())


def as_tensor(array: AnyArray) -> AnyArray:
    """Return a CuPy array as a torch tensor in the same memory."""
    torch = importlib.import_module("torch")
    if not array.size:
        return torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)), device=f"cuda:{array.device.id}")
    return torch.from_dlpack(array)


def _back(result: AnyArray, like: AnyArray) -> AnyArray:
    return as_tensor(result) if is_tensor(like) else result


@contextlib.contextmanager
def _beside(array: AnyArray) -> Iterator[None]:
    """Let CuPy use the array's device and, for a tensor, torch's current stream and memory pool."""
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
    """A stream, given by its address, with CUDA's stream protocol; torch's own streams have it only since 2.9."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


# Cached, because in some CuPy releases a Stream made from another library's stream destroys that stream when it is
# deleted. Torch has 32 streams per device and reuses them.
@functools.cache
def _as_cupy_stream(device: int, address: int) -> Any:  # noqa: ANN401 - a cupy.cuda.Stream
    """Return the stream at an address, of the current device, as a CuPy stream; CuPy 14 deprecates ExternalStream."""
    cuda = _cupy().cuda
    if hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(_Handle(address))
    return cuda.ExternalStream(address, device)


@functools.cache
def _memory_of_torch() -> Any:  # noqa: ANN401 - a cupy.cuda.PythonFunctionAllocator
    """Return an allocator that gives CuPy memory of torch's pool, for torch's current stream."""
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
    """Return the extra with the CuPy for the CUDA version of this environment's torch."""
    cuda = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None) or "12"
    return f"gpu-cuda{cuda.partition('.')[0]}"
