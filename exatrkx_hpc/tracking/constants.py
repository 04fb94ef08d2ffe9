"""Every constant of the pipeline and of its networks, in one place.

The scales, the radius, the neighbour limit and the two cuts are those of the public ExaTrkX service, so that
its clients and its weights fit without change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
#: Names of particles or tracks: whole numbers of 64 bits, unsigned where one of them needs it.
Names = NDArray[np.int64] | NDArray[np.uint64]
#: What the edge networks answer with: a logit, or the probability that is its sigmoid.
Scores = Literal["logits", "probabilities"]

#: One hit is (r / 3000 mm, phi / pi, z / 400 mm).
R_SCALE_MM = 3000.0
PHI_SCALE = float(np.pi)
Z_SCALE_MM = 400.0
N_FEATURES = 3
#: How an edge network gets its edges: the larger hit number first, the inner hit first, or each pair both ways.
EdgeOrder = Literal["number", "radius", "both"]


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """What the stages between the networks are set to.

    `radius` and `max_neighbours` bound the neighbour search in the embedding (dimensionless); `filter_cut`
    and `gnn_cut` are probabilities. `scores` says what both edge networks give: logits, whose sigmoid is compared
    with the cut, or probabilities, which are compared as they are.
    `edge_order` is how they get the edges.
    """

    radius: float = 1.6
    max_neighbours: int = 500
    filter_cut: float = 0.21
    gnn_cut: float = 0.75
    scores: Scores = "logits"
    edge_order: EdgeOrder = "number"


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
    embed_width: int = 96
    embed_layers: int = 3
    filter_width: int = 32
    filter_layers: int = 2
    gnn_width: int = 32
    gnn_iterations: int = 4


DEFAULT_NETWORKS = NetworkSettings()


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the stand-in networks are trained: events, steps, learning rates, weights in the losses.

    There is a stock of `small_events` of `tracks` particles (fewest, most) and of `dense_events` of
    `dense_tracks`; these are cut into `dense_parts` wedges in phi each, so that all have about 2,500 hits. A
    share of `helix_share` of the small ones are the numpy generator's, whatever makes the others. A step sees
    one of them, turned at random, and a wedge with the chance of `dense_share`. The graph network sees each of
    the `graph_events` that were drawn for it several times.

    In the embedding, neighbours along a track are pulled to within `pull_to` of the radius, with the weight
    `pull_weight`; strangers are pushed away from `anchors` hits drawn in each step, to `push_to` of the radius.
    Two hits of a particle count as joined when they are at most `reach` places apart along it: 2 bridges a lost
    edge. `filter_positive` and `gnn_positive` weigh true edges against false ones. They set where the fixed cuts
    come to lie: the filter must lose nearly nothing, and the graph network must join no two tracks.
    """

    small_events: int = 360
    tracks: tuple[int, int] = (130, 240)
    dense_events: int = 60
    dense_tracks: tuple[int, int] = (600, 900)
    dense_parts: int = 4
    dense_share: float = 0.4
    helix_share: float = 0.35
    pull_to: float = 0.3
    pull_weight: float = 40.0
    push_to: float = 1.05
    anchors: int = 700
    max_pairs: int = 60_000
    reach: int = 2
    filter_positive: float = 2.0
    gnn_positive: float = 0.3
    embed_steps: int = 2800
    embed_rate: float = 4e-3
    filter_steps: int = 1000
    filter_rate: float = 4e-3
    graph_events: int = 600
    gnn_steps: int = 2400
    gnn_rate: float = 4e-3


DEFAULT_TRAINING = TrainingSettings()
#: For tests and first looks: seconds instead of minutes, and weights that find little.
QUICK_TRAINING = TrainingSettings(
    small_events=20,
    tracks=(20, 40),
    dense_events=2,
    dense_tracks=(80, 120),
    embed_steps=100,
    filter_steps=150,
    filter_rate=1e-2,
    graph_events=12,
    gnn_steps=150,
    gnn_rate=1e-2,
)
DEFAULT_SEED = 20260
