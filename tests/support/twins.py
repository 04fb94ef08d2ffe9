"""The GPU kernels on the CPU: kernels.cu compiled as C++, launched by the same Python code as on a GPU."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program, run
from exatrkx_hpc.tracking import kernels

SOURCE = Path(kernels.__file__).with_suffix(".cu")
FOLDER = Path(__file__).parent / "twin"
#: The C types of CuPy and NumPy scalars, by the character of their dtype.
C_TYPES = {"i": ctypes.c_int, "l": ctypes.c_longlong, "f": ctypes.c_float, "d": ctypes.c_double}


class Twin:
    """A kernels.Launcher whose device is this machine's CPU and whose arrays are NumPy's."""

    xp = np

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.launched: list[str] = []

    def launch(self, kernel: str, blocks: tuple[int, int], threads: int, *arguments: Any) -> None:
        self.launched.append(kernel)
        self.library[f"launch_{kernel}"](*map(ctypes.c_uint, blocks), ctypes.c_uint(threads), *map(as_c, arguments))


def as_c(argument: Any) -> Any:
    """Convert an array to its address, or a NumPy scalar to its C type; plain Python numbers have no type and fail."""
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    return C_TYPES[argument.dtype.char](argument.item())


@functools.cache
def twin(dimensions: int = 8) -> Twin:
    """Return the kernels for an embedding of `dimensions` axes; skip the test without g++."""
    try:
        compiler = find_program("g++", remedy="install g++")
    except MissingComponent as error:
        pytest.skip(f"the kernels' twin on the CPU: {error}")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "twin.so"
        flags = [
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
        ]
        source = ["-include", "cuda.h", "-x", "c++", "-include", str(SOURCE), "launches.cpp"]
        done = run([compiler, *flags, f"-DDIMENSIONS={dimensions}", *source, "-o", str(library)], cwd=FOLDER)
        assert done.returncode == 0, done.stderr
        return Twin(ctypes.CDLL(str(library)))
