"""Parsing of untrusted files: each parser error becomes one line; arrays are loaded without pickle."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import ExatrkxError, InputError

#: Bytes of an array in an archive, unpacked: a few hundred of zeros may claim to be any number.
_LARGEST = 1 << 30
_HEADERS: Mapping[tuple[int, int], Callable[[io.BytesIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


@contextlib.contextmanager
def parse_errors(path: Path, form: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a parser raises inside the block into an InputError of one line: bytes can surprise any parser.

    `form` is what the file at `path` should be, such as "a .npy file". Errors of ours pass as they are, and
    those of the classes `but`.
    """
    passing: tuple[type[Exception], ...] = (ExatrkxError, *but)
    try:
        yield
    except passing:
        raise
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; split it, or start fewer workers") from error
    except Exception as error:
        said = " ".join(str(error).split())[:200] or "no reason given"
        raise InputError(f"{path} cannot be read as {form} ({type(error).__name__}: {said}); write it again") from error


def npy_header(path: Path, data: bytes, *, wanted: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether columns come first, type and first byte of the array in the bytes of a `.npy` file.

    Raises InputError, which says what is `wanted`, for a torn header and for Python objects, which are never loaded.
    """
    file = io.BytesIO(data)
    read_magic: Callable[[io.BytesIO], tuple[int, int]] = npy.read_magic
    try:
        # The header alone first: what it promises need not be there, and may be Python objects. It is read as Python
        # is, so a torn one may raise whatever a torn program does.
        shape, by_columns, dtype = _HEADERS[read_magic(file)](file)
    except Exception as error:
        raise InputError(f"{path} is not a complete numpy file; {wanted}") from error
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, which are never loaded; {wanted}")
    return shape, by_columns, dtype, file.tell()


def read_npy(path: Path, data: bytes, *, wanted: str) -> NDArray[Any]:
    """Return the array in the bytes of the `.npy` file at `path`, a view of them; raises InputError as `npy_header`."""
    shape, by_columns, dtype, start = npy_header(path, data, wanted=wanted)
    number = 1
    for size in shape:  # as Python's numbers: what a torn header promises may be more than 64 bits hold
        number *= size
    if len(data) - start != number * dtype.itemsize or any(size < 0 for size in shape):
        raise InputError(f"{path} is truncated: {len(data)} bytes do not hold {list(shape)}; write it again")
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if by_columns else "C")


def unpack_npz(path: Path, data: bytes, *, wanted: str) -> Mapping[str, Callable[[], bytes]]:
    """Return what unpacks each array of the `.npz` file at `path`, by the names of the arrays.

    Raises InputError for an archive that is torn, at once or when an array is unpacked.
    """
    with parse_errors(path, "an .npz file"):
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = archive.namelist()

    def unpack(name: str) -> bytes:
        with parse_errors(path, "an .npz file"):
            if archive.getinfo(name).file_size > _LARGEST:  # no more than this is ever unpacked
                raise InputError(f"{path} unpacks to more than {_LARGEST >> 20} MB, too much for an event; {wanted}")
            return archive.read(name)

    return {name.removesuffix(".npy"): (lambda name=name: unpack(name)) for name in names}  # type: ignore[misc]
