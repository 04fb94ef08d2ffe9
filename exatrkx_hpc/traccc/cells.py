"""The cells of an event, as the service receives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

#: The columns of the input tensors CELL_POSITIONS and CELL_PROPERTIES, in their order.
POSITIONS = ("geometry_id", "measurement_id", "channel0", "channel1")
PROPERTIES = ("timestamp", "value")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """N cells: pixels or strips that measured a charge.

    `positions` `[N, 4]` (int64): the ID of the module, the number of the measurement (the event file's own, which the
    chain ignores), and the two channels on the module. `properties` `[N, 2]` (float32): the time (ns, ignored, too) and
    the value, which is the weight of the cell in its cluster; simulated ones are path lengths in silicon (mm).
    """

    positions: Int64
    properties: Float32

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def geometry_ids(self) -> Int64:
        """The module of each cell, `[N]`."""
        return self.positions[:, 0]

    @property
    def measurement_ids(self) -> Int64:
        """The measurement of each cell as the event file numbers it, `[N]`."""
        return self.positions[:, 1]

    @property
    def channels(self) -> Int64:
        """The channels of each cell, `[N, 2]`."""
        return self.positions[:, 2:]

    @property
    def values(self) -> Float32:
        """The weight of each cell, `[N]`."""
        return self.properties[:, 1]
