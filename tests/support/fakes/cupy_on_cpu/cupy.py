"""A stand-in for CuPy without a GPU: NumPy's arrays under CuPy's names, and kernels that run as C++.

It implements only what gpu.py uses, so that tests can run gpu.py. It does not show that the real CuPy behaves the same.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

import numpy
import twins


class Device(contextlib.nullcontext):
    """The only device; a context manager, like CuPy's."""

    id = 0


class ndarray(numpy.ndarray):
    """An array that claims to be on a GPU."""

    device = Device()
    __cuda_array_interface__: ClassVar = {"version": 3}

    def get(self):
        return numpy.array(self)


def asarray(array):
    return numpy.asarray(array).view(ndarray)


def empty(shape, dtype):
    return numpy.empty(shape, dtype).view(ndarray)


def full(shape, value, dtype):
    return numpy.full(shape, value, dtype).view(ndarray)


def arange(n, dtype):
    return numpy.arange(n, dtype=dtype).view(ndarray)


def flatnonzero(array):
    return numpy.flatnonzero(array).view(ndarray)


def ascontiguousarray(array, dtype):
    return numpy.ascontiguousarray(array, dtype).view(ndarray)


class cuda:
    """The streams of CuPy 14, without ExternalStream, because CuPy 14 warns about it."""

    class Stream(contextlib.nullcontext):
        def __init__(self, address):
            super().__init__()
            self.address = address

        @classmethod
        def from_external(cls, stream):
            version, address = stream.__cuda_stream__()
            assert (version, type(address)) == (0, int)
            return cls(address)

    @staticmethod
    def set_allocator(allocator):
        assert allocator is None


class RawModule:
    """The kernels; asserts that the arguments are those for CuPy."""

    def __init__(self, *, code, options):
        assert code == twins.SOURCE.read_text()
        standard, dimensions = options
        assert standard == "--std=c++14"
        self.twin = twins.twin(int(dimensions.removeprefix("-DDIMENSIONS=")))

    def get_function(self, name):
        def kernel(blocks, threads, arguments):
            assert all(isinstance(argument, (ndarray, numpy.generic)) for argument in arguments)
            self.twin.launch(name, blocks, *threads, *arguments)

        return kernel
