"""Hits as a caller of Python gives them: whatever looks like an array becomes float32 `[N, 3]`, or one clear error.

Nothing that a conversion would lose goes unsaid: a mask, an imaginary part, a date, the order of named columns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.values import COLUMNS, Float32

_WANTED: Final = "float32 [N,3] is wanted (r/3000, phi/pi, z/400)"
_NAMES: Final = ("r", "phi", "z")
#: What is no number, by numpy's kind of a dtype, and what to do about it.
_NO_NUMBERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "b": "truth values",
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


def checked_hits(hits: ArrayLike) -> Float32:
    """Return `hits` as contiguous float32 `[N, 3]`; raise InputError when they are no such finite numbers.

    Taken are lists, arrays of NumPy (of whole numbers and floats of any size and byte order), torch and CuPy on any
    device, with or without a gradient, and tables with columns.
    """
    array = hits if type(hits) is np.ndarray else _array(hits)
    if array.dtype.kind in _NO_NUMBERS:
        raise _no_numbers(hits, array)
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=np.float32)
    # ascontiguousarray makes a scalar one-dimensional, which the shape check refuses like any other.
    if found.ndim != 2 or found.shape[1] != COLUMNS:
        raise InputError(f"hits have the shape {list(array.shape)}, not [N,3] (r/3000, phi/pi, z/400)")
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(f"hit {row} is not finite in single precision: {found[row].tolist()}")
    return found


def _no_numbers(hits: object, array: NDArray[Any]) -> InputError:
    if array.ndim == 0:
        return InputError(f"hits are one {type(hits).__name__}; {_WANTED}")
    return InputError(f"hits are {array.dtype}, {_NO_NUMBERS[array.dtype.kind]}; {_WANTED}")


def _array(hits: object) -> NDArray[Any]:
    """Return what is no plain array as one, without losing anything; raise InputError otherwise."""
    _require_order(hits)
    if hasattr(hits, "nnz") and hasattr(hits, "toarray"):
        raise InputError(f"hits are sparse ({type(hits).__name__}): use hits.toarray(); {_WANTED}")
    try:
        if _is_tensor(hits):
            return _of_tensor(hits)
        if hasattr(hits, "__cuda_array_interface__") and hasattr(hits, "get"):
            hits = hits.get()
        if isinstance(hits, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in hits):
            hits = np.ma.MaskedArray(hits)  # type: ignore[no-untyped-call]
        if isinstance(hits, np.ma.MaskedArray):
            return _unmasked(hits)
        return np.asarray(hits)
    except InputError:
        raise
    except Exception as error:  # of any library whose array it is
        said = " ".join(str(error).split())[:200]
        raise InputError(f"hits cannot be turned into float32 [N,3]: {said}") from error


def _require_order(hits: object) -> None:
    """Raise InputError when the hits are a table whose columns have the right names in another order."""
    names = getattr(hits, "column_names", None) or getattr(hits, "columns", None)
    try:
        named = [str(name).lower() for name in names] if names is not None and len(names) == COLUMNS else []
    except TypeError:
        named = []
    if sorted(named) == sorted(_NAMES) and tuple(named) != _NAMES:
        wanted = ", ".join(repr(name) for name in _NAMES)
        raise InputError(f"the columns of hits are {', '.join(named)}; give them in the order [{wanted}]")


def _is_tensor(hits: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(hits, torch.Tensor)


def _of_tensor(tensor: Any) -> NDArray[Any]:  # noqa: ANN401 - torch need not be here
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise InputError(f"hits are a sparse tensor: use hits.to_dense(); {_WANTED}")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # which numpy has not
        tensor = tensor.float()
    return np.asarray(tensor.numpy())


def _unmasked(hits: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    masked = np.broadcast_to(hits.mask, hits.shape)
    if not masked.any():
        return np.asarray(hits.data)
    hit = int(np.argwhere(masked)[0][0]) if masked.ndim else 0
    raise InputError(
        f"hits have {int(masked.sum())} masked values, the first in hit {hit}; leave those hits out, as with "
        "np.ma.compress_rows(hits), or fill them"
    )
