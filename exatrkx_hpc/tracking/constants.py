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

#: Folder names of the three networks in a model repository; each holds `1/model.pt`.
NETWORK_NAMES = ("embed", "filter", "gnn")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How large the three networks are: layers between input and output, and their width.

    The original's embedding has five layers of 512 and its graph network is 64 wide with 8 iterations; these
    stand-ins are small enough to be shipped and to be trained without a GPU.
    """

    embed_dimensions: int = 8
    embed_width: int = 192
    embed_layers: int = 4
    filter_width: int = 96
    filter_layers: int = 3
    gnn_width: int = 40
    gnn_iterations: int = 6


DEFAULT_NETWORKS = NetworkSettings()


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the stand-in networks are trained: sizes of events, steps, learning rates, weights in the losses.

    Every step sees one event of a number of tracks drawn between `min_tracks` and `max_tracks`; the graph
    network sees each of its `graph_events` events several times.

    In the embedding, neighbours along a track are pulled to within `pull_to` of the radius, with the weight
    `pull_weight`; of all the pairs within the radius, `max_pairs` at most are looked at in a step. Two hits of
    a particle count as joined when they are at most `reach` places apart along it: 2 bridges a lost edge, and
    took the share of duplicates from 4 % to 0.2 %. `filter_positive` and `gnn_positive` weigh true edges
    against false ones. They set where the fixed cuts come to lie: the filter must lose nearly nothing, and
    the graph network must join no two tracks.
    """

    min_tracks: int = 120
    max_tracks: int = 240
    pull_to: float = 0.3
    pull_weight: float = 40.0
    max_pairs: int = 60_000
    reach: int = 2
    filter_positive: float = 4.0
    gnn_positive: float = 0.3
    embed_steps: int = 800
    embed_rate: float = 4e-3
    filter_steps: int = 500
    filter_rate: float = 4e-3
    graph_events: int = 250
    gnn_steps: int = 1300
    gnn_rate: float = 4e-3


DEFAULT_TRAINING = TrainingSettings()
DEFAULT_SEED = 20260
