"""Convert an event from a Python caller to the tensors of a workload, or raise one clear error.

A lossy conversion is an error: a mask, an imaginary part, a date, another order of named columns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload

Given: TypeAlias = "ArrayLike | Mapping[str, ArrayLike]"
"""One event: an array if the workload has one input, or a mapping of input names to arrays."""

#: Types that are not numbers, by numpy's dtype kind, some with a remedy.
_NO_NUMBERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "b": "truth values, not numbers",
        "c": "complex numbers: take .real if that is meant",
        "m": "time spans: divide by their unit",
        "M": "dates",
        "O": "Python objects: convert the columns, as with .astype(np.float32)",
        "S": "bytes: convert them, as with .astype(np.float32)",
        "U": "text: convert it, as with .astype(np.float32)",
        "T": "text: convert it, as with .astype(np.float32)",
        "V": "records: numpy.lib.recfunctions.structured_to_unstructured makes columns of them",
    }
)


def as_tensors(workload: Workload, given: Given) -> Tensors:
    """Return `given` as contiguous arrays of the workload's types; raise InputError for an invalid event.

    Accepts lists, arrays of NumPy (of any item size and byte order), torch and CuPy on any device, with or without a
    gradient, and tables with columns.
    """
    arrays = _by_name(workload, given)
    tensors = {spec.name: _checked(spec, arrays[spec.name]) for spec in workload.inputs}
    _check_axes(workload, tensors)
    workload.check(tensors)
    return tensors


def _by_name(workload: Workload, given: Given) -> Mapping[str, ArrayLike]:
    names = [spec.name for spec in workload.inputs]
    if not isinstance(given, Mapping):
        if len(names) == 1:
            return {names[0]: given}
        raise InputError(f"an event of workload {workload.name} is a mapping with the arrays {', '.join(names)}")
    if unknown := sorted(set(given) - set(names)):
        raise InputError(f"workload {workload.name} has no input {unknown[0]!r}; its inputs are {', '.join(names)}")
    if missing := [name for name in names if name not in given]:
        raise InputError(f"an event of workload {workload.name} needs {', '.join(missing)}, too")
    return given


def _checked(spec: Tensor, value: object) -> Array:
    array = value if type(value) is np.ndarray else _array(spec, value)
    if array.dtype.kind in _NO_NUMBERS:
        raise _no_numbers(spec, value, array)
    found = _converted(spec, array)
    fixed = [axis for axis in spec.shape if isinstance(axis, int)]
    sizes = [size for size, axis in zip(array.shape, spec.shape, strict=False) if isinstance(axis, int)]
    if array.ndim != len(spec.shape) or sizes != fixed:
        raise InputError(f"{spec.name} have the shape {list(array.shape)}, not {_shape(spec)}{_units(spec)}")
    if found.dtype.kind == "f":
        _check_finite(spec, found)
    return found


def _converted(spec: Tensor, array: Array) -> Array:
    """Return the array in the tensor's type; raise InputError if integers would not stay exact."""
    wanted = np.dtype(spec.dtype)
    if wanted.kind in "iu" and array.dtype != wanted:
        limits = np.iinfo(wanted)
        if array.dtype.kind == "f" and not (np.abs(array) < 2**53).all():
            raise InputError(f"{spec.name} are {array.dtype}, not exact from 2^53 on; give integers")
        if array.dtype.kind == "f" and (array != np.trunc(array)).any():
            raise InputError(f"{spec.name} are not integers; expected {spec.dtype}")
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise InputError(
                f"{spec.name} reach from {array.min()} to {array.max()}, which does not fit into {spec.dtype}"
            )
    with np.errstate(over="ignore"):
        found: Array = np.ascontiguousarray(array, dtype=wanted)
    return found


def _check_finite(spec: Tensor, array: Array) -> None:
    finite = np.isfinite(array)
    if finite.all():
        return
    row = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
    raise InputError(f"row {row} of {spec.name} is not finite in single precision: {array[row].tolist()}")


def _check_axes(workload: Workload, tensors: Tensors) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in workload.inputs:
        for axis, size in zip(spec.shape, tensors[spec.name].shape, strict=True):
            if isinstance(axis, str):
                first, whose = sizes.setdefault(axis, (size, spec.name))
                if first != size:
                    raise InputError(
                        f"{whose} has {first} {axis} but {spec.name} has {size}; both must have the same number"
                    )


def _shape(spec: Tensor) -> str:
    return f"[{','.join(str(axis) if isinstance(axis, int) else 'N' for axis in spec.shape)}]"


def _units(spec: Tensor) -> str:
    return f" ({spec.units})" if spec.units else ""


def _wanted(spec: Tensor) -> str:
    return f"expected {spec.dtype} {_shape(spec)}{_units(spec)}"


def _no_numbers(spec: Tensor, value: object, array: Array) -> InputError:
    if array.ndim == 0:
        return InputError(f"{spec.name} are a single {type(value).__name__}; {_wanted(spec)}")
    return InputError(f"{spec.name} are {array.dtype}, {_NO_NUMBERS[array.dtype.kind]}; {_wanted(spec)}")


def _array(spec: Tensor, value: Any) -> Array:  # noqa: ANN401 - whatever looks like an array
    """Convert any other array-like value to a plain array without loss; raise InputError if that is impossible."""
    _require_order(spec, value)
    if hasattr(value, "nnz") and hasattr(value, "toarray"):
        raise InputError(f"{spec.name} are sparse ({type(value).__name__}): use {spec.name}.toarray(); {_wanted(spec)}")
    try:
        if _is_tensor(value):
            return _of_tensor(spec, value)
        if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
            value = value.get()
        if isinstance(value, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in value):
            value = np.ma.MaskedArray(value)  # type: ignore[no-untyped-call]
        if isinstance(value, np.ma.MaskedArray):
            return _unmasked(spec, value)
        return np.asarray(value)
    except InputError:
        raise
    except Exception as error:  # any library may raise anything
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{spec.name} cannot be turned into {spec.dtype} {_shape(spec)}: {said}") from error


def _require_order(spec: Tensor, value: object) -> None:
    """Raise InputError for a table whose columns have the right names in the wrong order."""
    names = getattr(value, "column_names", None)
    names = getattr(value, "columns", None) if names is None else names
    try:
        named = [str(name).lower() for name in names] if names is not None and len(names) == len(spec.columns) else []
    except TypeError:
        named = []
    if named and sorted(named) == sorted(spec.columns) and tuple(named) != spec.columns:
        wanted = ", ".join(repr(name) for name in spec.columns)
        raise InputError(f"the columns of {spec.name} are {', '.join(named)}; give them in the order [{wanted}]")


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_tensor(spec: Tensor, tensor: Any) -> Array:  # noqa: ANN401 - torch need not be here
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise InputError(f"{spec.name} are a sparse tensor: use {spec.name}.to_dense(); {_wanted(spec)}")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
        tensor = tensor.float()
    return np.asarray(tensor.numpy())


def _unmasked(spec: Tensor, value: np.ma.MaskedArray[Any, Any]) -> Array:
    masked = np.broadcast_to(value.mask, value.shape)
    if not masked.any():
        return np.asarray(value.data)
    row = int(np.argwhere(masked)[0][0]) if masked.ndim else 0
    raise InputError(
        f"{spec.name} have {int(masked.sum())} masked values, the first in row {row}; leave those rows out, as with "
        f"np.ma.compress_rows({spec.name}), or fill them"
    )
