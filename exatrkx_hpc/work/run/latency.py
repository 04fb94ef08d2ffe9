"""Latency statistics of many requests in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SHORTEST: Final = 1e-6
_STEP: Final = math.log(1.01)
_BINS: Final = 2600  # up to 170,000 s


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds from the first request of an event to its result, retries and pauses included.

    The mean is exact, a percentile within 1 %.
    """

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


class Stopwatch:
    """Collects times in bins of 1 % width, from 1 µs to two days."""

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, dtype=np.int64)
        self._sum = 0.0
        self._number = 0

    def add(self, seconds: float) -> None:
        """Add one time, in seconds."""
        place = int(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _STEP)
        self._bins[min(place, _BINS - 1)] += 1
        self._sum += seconds
        self._number += 1

    def add_all(self, seconds: NDArray[np.float64]) -> None:
        """Add many times `[N]` at once, in seconds."""
        places = (np.log(np.maximum(seconds, _SHORTEST) / _SHORTEST) / _STEP).astype(np.int64)
        self._bins += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)
        self._sum += float(seconds.sum())
        self._number += len(seconds)

    def join(self, other: Stopwatch) -> None:
        """Add all times of another Stopwatch."""
        self._bins += other._bins
        self._sum += other._sum
        self._number += other._number

    def histogram(self, most: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return edges `[N+1]` in milliseconds and counts `[N]`, from the shortest to the longest time, N <= `most`.

        All bins have the same relative width. Without any time, both are empty.
        """
        (filled,) = self._bins.nonzero()
        if not len(filled):
            return (), ()
        first, together = int(filled[0]), -(-(int(filled[-1]) + 1 - int(filled[0])) // most)
        starts = np.arange(first, int(filled[-1]) + 1, together)
        counts = np.add.reduceat(self._bins[: int(filled[-1]) + 1], starts)
        edges = 1000.0 * _SHORTEST * np.exp(np.append(starts, starts[-1] + together) * _STEP)
        return tuple(map(float, edges)), tuple(map(int, counts))

    def latency(self) -> Latency:
        """Return the figures so far; all 0 without any time."""
        if not self._number:
            return Latency()
        mean = 1000.0 * self._sum / self._number
        return Latency(mean=mean, p50=self._percentile(50), p95=self._percentile(95), p99=self._percentile(99))

    def _percentile(self, percent: float) -> float:
        """Return the middle of the bin that holds the percentile, in milliseconds."""
        rank = math.ceil(self._number * percent / 100.0)
        place = int(np.searchsorted(np.cumsum(self._bins), rank))
        return 1000.0 * _SHORTEST * math.exp((place + 0.5) * _STEP)
