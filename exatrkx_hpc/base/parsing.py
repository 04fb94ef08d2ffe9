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

#: Maximum unpacked bytes of an array in an archive: a small archive of zeros can unpack to any size.
_LARGEST = 1 << 30
_HEADERS: Mapping[tuple[int, int], Callable[[io.BytesIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


@contextlib.contextmanager
def parse_errors(path: Path, form: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn every parser error inside the block into a one-line InputError; corrupt bytes can raise anything.

    `form` names the expected format of the file at `path`, such as "a .npy file". ExatrkxErrors and errors of the
    classes `but` pass unchanged.
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
    """Return the shape, Fortran order, dtype and data offset of the array in the bytes of a `.npy` file.

    Raises InputError with the remedy `wanted` for a corrupt header and for Python objects, which are never loaded.
    """
    file = io.BytesIO(data)
    read_magic: Callable[[io.BytesIO], tuple[int, int]] = npy.read_magic
    try:
        # Read only the header: the data may be missing, or be Python objects. numpy parses the header as Python code,
        # so a corrupt header can raise any error of Python's parser.
        shape, by_columns, dtype = _HEADERS[read_magic(file)](file)
    except Exception as error:
        raise InputError(f"{path} is not a complete numpy file; {wanted}") from error
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, which are never loaded; {wanted}")
    return shape, by_columns, dtype, file.tell()


def read_npy(path: Path, data: bytes, *, wanted: str) -> NDArray[Any]:
    """Return the array in the bytes of the `.npy` file at `path`, as a view of them.

    Raises InputError like `npy_header`, and for truncated data.
    """
    shape, by_columns, dtype, start = npy_header(path, data, wanted=wanted)
    number = 1
    for size in shape:  # Python integers: a corrupt header may need more than 64 bits
        number *= size
    if len(data) - start != number * dtype.itemsize or any(size < 0 for size in shape):
        raise InputError(f"{path} is truncated: {len(data)} bytes do not hold {list(shape)}; write it again")
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if by_columns else "C")


def unpack_npz(path: Path, data: bytes, *, wanted: str) -> Mapping[str, Callable[[], bytes]]:
    """Return a function per array that unpacks its bytes from the `.npz` file at `path`, by array name.

    Raises InputError for a corrupt archive, at once or when an array is unpacked, and for an array above 1 GiB.
    """
    with parse_errors(path, "an .npz file"):
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = archive.namelist()

    def unpack(name: str) -> bytes:
        with parse_errors(path, "an .npz file"):
            if archive.getinfo(name).file_size > _LARGEST:  # zipfile never unpacks more than file_size
                raise InputError(f"{path} unpacks to more than {_LARGEST >> 20} MB, too much for an event; {wanted}")
            return archive.read(name)

    return {name.removesuffix(".npy"): (lambda name=name: unpack(name)) for name in names}  # type: ignore[misc]
