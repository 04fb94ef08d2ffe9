"""A small stand-in for the Python API of Triton's Python backend, to run a stage's `execute()` without a server.

It has the parts that the stages use, and refuses the calls that Triton 2.51 refuses. Known differences: input tensors
are in plain memory, not in shared memory; `as_numpy()` is right with every NumPy, but Triton 2.51 reads zeros with
NumPy 2; outputs are not copied.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class TritonError(Exception):
    """The error of one request, with two of Triton's status codes."""

    INTERNAL, UNAVAILABLE = 1, 4

    def __init__(self, message: str = "", code: int = INTERNAL) -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        """Return the message."""
        return self._message

    def code(self) -> int:
        """Return the status code."""
        return self._code


class TritonModelException(Exception):
    """Triton's exception for a call that it refuses."""


class Tensor:
    """A named tensor: the constructor takes a NumPy array, `from_dlpack` any object with DLPack."""

    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"Tensor takes a NumPy array, not {type(array).__name__}")
        self._name, self._tensor = name, torch.from_numpy(np.ascontiguousarray(array))

    @classmethod
    def from_dlpack(cls, name: str, source: Any) -> Tensor:
        """Return a tensor in the memory of a capsule, or of an object with `__dlpack__`."""
        if isinstance(source, np.ndarray):
            raise TritonModelException("DLPack of a NumPy array: Triton 2.51 would lose the stub")
        made = cls.__new__(cls)
        made._name, made._tensor = name, torch.utils.dlpack.from_dlpack(source)
        if not made._tensor.is_contiguous():
            raise TritonModelException("DLPack tensor is not contiguous. Only contiguous DLPack tensors are supported.")
        return made

    def name(self) -> str:
        """Return its name."""
        return self._name

    def is_cpu(self) -> bool:
        """Return whether it is in CPU memory."""
        return not self._tensor.is_cuda

    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return tuple(self._tensor.shape)

    def as_numpy(self) -> np.ndarray:
        """Return it as a NumPy array; raises TritonModelException for a tensor on a GPU, as Triton does."""
        if not self.is_cpu():
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._tensor.numpy()

    def to_dlpack(self) -> Any:
        """Return a DLPack capsule."""
        return torch.utils.dlpack.to_dlpack(self._tensor)

    def __dlpack__(self, stream: int | None = None) -> Any:
        """Return a DLPack capsule."""
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the kind and the number of its device."""
        return self._tensor.__dlpack_device__()


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        if error is None and not all(isinstance(one, Tensor) for one in output_tensors):
            raise TypeError("output_tensors must be tensors")
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        """Return the tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Return whether this is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return the error."""
        return self._error


class Request:
    """A request with its input tensors."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self._inputs = [Tensor(name, array) for name, array in arrays.items()]

    def inputs(self) -> list[Tensor]:
        """Return the tensors."""
        return self._inputs


def install() -> None:
    """Make the stand-in importable under the name that stages import."""
    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        TritonModelException=TritonModelException,
        InferenceResponse=InferenceResponse,
    )
    sys.modules[module.__name__] = module
