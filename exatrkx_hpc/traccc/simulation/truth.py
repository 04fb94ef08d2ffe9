"""What a simulated event knows about itself: its measurements, which particle made them, and where it passed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.traccc.cells import Cells, Float64, Int64

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Particles:
    """P particles that the simulation tracked, `[P]` each: also secondaries, which are not `generated`.

    `vertex` is 0 for the hard collision and 1, 2, ... for pile-up. `charge` is in e, `pt` in GeV; `phi` and `eta` are
    those at the start, whose `position` `[P, 3]` is in mm. `displaced` ones come from a decay away from their vertex.
    """

    vertex: Int64
    generated: Bools
    displaced: Bools
    charge: Int64
    pt: Float64
    phi: Float64
    eta: Float64
    position: Float64

    def __len__(self) -> int:
        return len(self.vertex)


@dataclass(frozen=True, kw_only=True)
class Passages:
    """H passages of a particle through a module, `[H]` each, ordered by measurement.

    `measurement` and `particle` are numbers of the event's measurements and particles. `local` `[H, 2]` (mm), `phi`,
    `theta` (radian), `qop` (e / GeV) and `time` (mm, c t) are the particle's own at the plane of the module.
    """

    measurement: Int64
    particle: Int64
    local: Float64
    phi: Float64
    theta: Float64
    qop: Float64
    time: Float64

    def __len__(self) -> int:
        return len(self.measurement)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The truth of an event: M measurements as the simulation clusters them, the passages and the particles.

    `geometry_ids` `[M]` (int64) and `local` `[M, 2]` (mm) are the module and the position of each measurement.
    """

    geometry_ids: Int64
    local: Float64
    passages: Passages
    particles: Particles


@dataclass(frozen=True, kw_only=True)
class CellEvent:
    """An event of cells and its truth; the cells' `measurement_ids` are numbers of the truth's measurements."""

    cells: Cells
    truth: Truth
