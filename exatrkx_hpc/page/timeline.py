"""Events in bins of running time, which leaves out the pauses between runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.page.history import Run, Throughput

_FEWEST_BINS: Final = 10
_MOST_BINS: Final = 90
_SHORTEST_BIN: Final = 0.1


class Timeline:
    """Counts events in bins of the running time of several runs; runs of shards may overlap."""

    def __init__(self, runs: Iterable[Run], most: int) -> None:
        """Make at most `most` bins; `runs` must be sorted by begin."""
        spans: list[list[float]] = []
        for run in runs:  # sorted by begin
            if spans and run.began <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], run.ended)
            else:
                spans.append([run.began, run.ended])
        self._starts = np.array([start for start, _ in spans])
        lengths = np.array([end - start for start, end in spans])
        self._offsets = np.concatenate(([0.0], np.cumsum(lengths)))
        self._lengths = lengths
        seconds = float(self._offsets[-1])
        self._width = _bin_width(seconds / most)
        number = max(1, int(np.ceil(seconds / self._width - 1e-9)))
        if number > 1 and seconds - (number - 1) * self._width < 0.5 * self._width:
            number -= 1  # a very short last bin would show a meaningless rate
        self._edges = (*(self._width * place for place in range(number)), max(seconds, self._width * (number - 1)))
        self._counts = np.zeros(number, dtype=np.int64)

    def add(self, ended: NDArray[np.float64]) -> None:
        """Add events that ended at these times, in seconds since 1970."""
        if not len(self._starts):
            return
        span = np.clip(np.searchsorted(self._starts, ended, side="right") - 1, 0, None)
        since = np.clip(ended - self._starts[span], 0.0, self._lengths[span])
        place = ((self._offsets[span] + since) / self._width).astype(np.int64)
        self._counts += np.bincount(np.minimum(place, len(self._counts) - 1), minlength=len(self._counts))

    def throughput(self) -> Throughput:
        """Return the counts; no bins if the running time is 0."""
        begins = tuple(float(at) for at in self._offsets[1:-1])
        if self._edges[-1] <= 0:
            return Throughput()
        return Throughput(counts=tuple(map(int, self._counts)), edges=self._edges, begins=begins)


def bins(wanted: float) -> int:
    """Limit the wanted number of bins to 10 to 90; want few bins for few events, because sparse bins show noise."""
    return int(min(max(wanted, _FEWEST_BINS), _MOST_BINS))


def _bin_width(least: float) -> float:
    """Return the next round width from `least` upwards: 1, 2 or 5 times a power of ten, at least 0.1 s."""
    width = _SHORTEST_BIN
    while width < least:
        width *= 2.5 if f"{width:e}"[0] == "2" else 2.0
    return width
