"""A stand-in for CuPy where there is no GPU: NumPy's arrays under CuPy's names, and kernels that run as C++.

It has what gpu.py uses and no more, so that gpu.py is run, and not only read. Whether the real CuPy behaves as this
one does, it cannot show.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

import numpy
import twins


class Device(contextlib.nullcontext):
    """The one device; a context, like CuPy's."""

    id = 0


class ndarray(numpy.ndarray):
    """An array that says of itself that it lies on a GPU."""

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
    """The streams of CuPy 14, which warns of ExternalStream: here that is not there at all."""

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
    """The kernels, if they are asked for as CuPy would be."""

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
