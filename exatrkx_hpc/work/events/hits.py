"""Read the hits of an event file, for tools that support ExaTrkX only: conversion, score, benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.work.events.source import read_event
from exatrkx_hpc.work.workloads.exatrkx import HITS, WORKLOAD


def read_hits(path: Path) -> NDArray[np.float32]:
    """Return the hits of a one-event file, float32 `[N, 3]`, contiguous and finite; errors as for `read_event`."""
    hits: NDArray[np.float32] = read_event(path, WORKLOAD).tensors[HITS]
    return hits
