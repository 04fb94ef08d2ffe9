"""An event as a file of numpy: `.npy`, one array, or `.npz`, an archive with the array `hits` or with one array."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.values import COLUMNS, Float32, blamed_on

_HITS = "hits"
_WANTED = "an event is one array [N, 3] of float32 or float64, a hit r/3000,phi/pi,z/400"
#: Bytes of an event in an archive, unpacked: a few hundred of zeros may claim to be any number.
_LARGEST = 1 << 30
_HEADERS: Mapping[tuple[int, int], Callable[[io.BytesIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def parse_npy(path: Path, data: bytes) -> Float32:
    """Return the hits in the bytes of the `.npy` file at `path`, float32 `[N, 3]`, contiguous and finite.

    Python objects in it are never loaded. Raises InputError for a torn file and for any other array.
    """
    file = io.BytesIO(data)
    read_magic: Callable[[io.BytesIO], tuple[int, int]] = npy.read_magic
    try:
        # The header alone first: what it promises need not be there, and may be Python objects. It is read as Python
        # is, so a torn one may raise whatever a torn program does.
        shape, by_columns, dtype = _HEADERS[read_magic(file)](file)
    except Exception as error:
        raise InputError(f"{path} is no whole file of numpy; {_WANTED}") from error
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, which are never loaded; {_WANTED}")
    if dtype.kind != "f" or dtype.itemsize not in (4, 8) or len(shape) != 2 or shape[1] != COLUMNS:
        raise InputError(f"{path} holds {dtype} {list(shape)}; {_WANTED}")
    start = file.tell()
    if len(data) - start != shape[0] * COLUMNS * dtype.itemsize:
        raise InputError(f"{path} is torn: {len(data)} bytes, which do not hold {list(shape)}; write it again")
    values = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if by_columns else "C")
    return checked_hits(values, str(path))


def parse_npz(path: Path, data: bytes) -> Float32:
    """Return the hits in the bytes of the `.npz` file at `path`: its array `hits`, or the only one; as `parse_npy`."""
    with blamed_on(path, "an .npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        name = f"{_HITS}.npy" if f"{_HITS}.npy" in names else names[0] if len(names) == 1 else None
        member = b""
        if name is not None:
            if archive.getinfo(name).file_size > _LARGEST:  # no more than this is ever unpacked
                raise InputError(f"{path} unpacks to more than {_LARGEST >> 20} MB, which is no event; {_WANTED}")
            member = archive.read(name)
    if name is None:
        held = ", ".join(one.removesuffix(".npy") for one in names) or "none"
        raise InputError(f"{path} has no array {_HITS} among several (it has: {held[:80]}); {_WANTED}")
    return parse_npy(path / name, member)


def checked_hits(values: np.ndarray, where: str) -> Float32:  # type: ignore[type-arg]
    """Return hits `[N, 3]` of any floating type as float32, contiguous; raises InputError unless all are finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes an infinity
        hits = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(hits)
    if not finite.all():
        hit, column = np.argwhere(~finite)[0]
        raise InputError(f"{where}: hit {hit} has {values[hit, column]}, which is not finite in single precision")
    return hits
