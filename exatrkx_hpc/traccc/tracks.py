"""The fitted tracks of an event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.traccc.cells import Float32, Int64

#: The columns of a track's parameters, and of one of its measurements.
PARAMETERS = ("chi2", "ndf", "loc0", "loc1", "phi", "theta", "qop", "time")
MEASUREMENTS = ("x", "y", "phi", "theta", "qop", "time")


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """T tracks with S measurements in all, in the units of ACTS: mm, radian, e / GeV, and mm for times (c t).

    `parameters` `[T, 8]` (float32): chi2 and the number of degrees of freedom of the fit, then the fitted loc0, loc1,
    phi, theta, qop and time on the plane of the track's first module. `lengths` `[T]` (int64): the number of
    measurements of each track. The rest has one row a measurement, track after track, from the inside out:
    `measurements` `[S, 6]` (float32), the position of the measurement on its module, then the smoothed phi, theta, qop
    and time there; `covariances` `[S, 25]` (float32), that of the smoothed loc0, loc1, phi, theta and qop, by rows;
    `geometry_ids` `[S]` (int64).
    """

    parameters: Float32
    lengths: Int64
    measurements: Float32
    covariances: Float32
    geometry_ids: Int64

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def first(self) -> Int64:
        """The row of the first measurement of each track, `[T]`."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def owner(self) -> Int64:
        """The track of each measurement, `[S]`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def chosen(self, keep: NDArray[np.bool_]) -> Tracks:
        """Return the tracks for which `keep` `[T]` is true."""
        rows = keep[self.owner]
        return Tracks(
            parameters=self.parameters[keep],
            lengths=self.lengths[keep],
            measurements=self.measurements[rows],
            covariances=self.covariances[rows],
            geometry_ids=self.geometry_ids[rows],
        )


def no_tracks() -> Tracks:
    """Return the result of an event without tracks."""
    return Tracks(
        parameters=np.empty((0, len(PARAMETERS)), dtype=np.float32),
        lengths=np.empty(0, dtype=np.int64),
        measurements=np.empty((0, len(MEASUREMENTS)), dtype=np.float32),
        covariances=np.empty((0, 25), dtype=np.float32),
        geometry_ids=np.empty(0, dtype=np.int64),
    )
