"""Hits as a numpy file: `.npy` (one array) or `.npz` (the array `hits`, or a single array)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.parsing import npy_header, read_npy, unpack_npz

COLUMNS = 3
_HITS = "hits"
_WANTED = "an event is one array [N, 3] of float32 or float64, a hit r/3000,phi/pi,z/400"


def parse_npy(path: Path, data: bytes) -> NDArray[np.float32]:
    """Return the hits in the bytes of the `.npy` file at `path`, float32 `[N, 3]`, contiguous and finite.

    Python objects are never loaded. Raises InputError for a damaged file and for any other array.
    """
    shape, _, dtype, _ = npy_header(path, data, wanted=_WANTED)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8) or len(shape) != 2 or shape[1] != COLUMNS:
        raise InputError(f"{path} holds {dtype} {list(shape)}; {_WANTED}")
    return checked_hits(read_npy(path, data, wanted=_WANTED), str(path))


def parse_npz(path: Path, data: bytes) -> NDArray[np.float32]:
    """Return the hits in the bytes of the `.npz` file at `path`: its array `hits` or its only one; see `parse_npy`."""
    arrays = unpack_npz(path, data, wanted=_WANTED)
    name = _HITS if _HITS in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if name is None:
        held = ", ".join(arrays) or "none"
        raise InputError(f"{path} has no array {_HITS} among several (it has: {held[:80]}); {_WANTED}")
    return parse_npy(path / f"{name}.npy", arrays[name]())


def checked_hits(values: np.ndarray, where: str) -> NDArray[np.float32]:  # type: ignore[type-arg]
    """Return hits `[N, 3]` of any floating type as float32, contiguous; raises InputError unless all are finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # a value that is too large becomes an infinity
        hits = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(hits)
    if not finite.all():
        hit, column = np.argwhere(~finite)[0]
        raise InputError(f"{where}: hit {hit} has {values[hit, column]}, which is not finite in single precision")
    return hits
