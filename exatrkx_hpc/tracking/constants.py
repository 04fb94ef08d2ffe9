"""Every constant of the pipeline and of its networks, in one place.

The scales, the radius, the neighbour limit and the two cuts are those of the public ExaTrkX service, so that
its clients and its weights fit without change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

#: One hit is (r / 3000 mm, phi / pi, z / 400 mm).
FEATURE_NAMES = ("r", "phi", "z")
R_SCALE_MM = 3000.0
PHI_SCALE = float(np.pi)
Z_SCALE_MM = 400.0
N_FEATURES = 3


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What the stages between the networks are set to.

    `radius` and `max_neighbours` bound the neighbour search in the embedding (dimensionless); `filter_cut`
    and `gnn_cut` are probabilities, compared with the sigmoid of a network's logit.
    """

    radius: float = 1.6
    max_neighbours: int = 500
    filter_cut: float = 0.21
    gnn_cut: float = 0.75


DEFAULT_SETTINGS = PipelineSettings()
