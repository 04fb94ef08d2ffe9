"""Every constant of the pipeline and of its networks, in one place.

The scales, the radius, the neighbour limit and the two cuts are those of the public ExaTrkX service, so that
its clients and its weights work without change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
#: IDs of particles or tracks: 64-bit integers, unsigned if one of them needs it.
Names = NDArray[np.int64] | NDArray[np.uint64]
#: The output of the edge networks: logits, or probabilities (the sigmoid of logits).
Scores = Literal["logits", "probabilities"]

#: One hit is (r / 3000 mm, phi / pi, z / 400 mm).
R_SCALE_MM = 3000.0
PHI_SCALE = float(np.pi)
Z_SCALE_MM = 400.0
N_FEATURES = 3
#: Order of the hits in an edge for the edge networks: larger hit number first, inner hit first, or each pair both ways.
EdgeOrder = Literal["number", "radius", "both"]


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings of the stages between the networks.

    `radius` and `max_neighbours` bound the neighbour search in the embedding (dimensionless); `filter_cut`
    and `gnn_cut` are probabilities. `scores` is the output of both edge networks: logits, whose sigmoid is compared
    with the cut, or probabilities, which are compared directly. `edge_order` is the order of the hits in the edges that
    these networks get.
    """

    radius: float = 1.6
    max_neighbours: int = 500
    filter_cut: float = 0.21
    gnn_cut: float = 0.75
    scores: Scores = "logits"
    edge_order: EdgeOrder = "number"


DEFAULT_SETTINGS = PipelineSettings()

#: Folder names of the three networks in a model repository; each holds `1/model.pt` or `1/model.onnx`.
NETWORK_NAMES = ("embed", "filter", "gnn")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Sizes of the three networks: number of hidden layers and their width.

    The original embedding has five layers of width 512; the original graph network has width 64 and 8 iterations.
    These stand-ins are small enough to ship and to train without a GPU.
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
    """Training of the stand-in networks: events, steps, learning rates, weights in the losses.

    The stock has `small_events` events of `tracks` particles (fewest, most) and `dense_events` events of
    `dense_tracks`. Each dense event is cut into `dense_parts` wedges in phi, so that all have about 2,500 hits. The
    numpy generator makes the share `helix_share` of the small events, whatever source makes the others. Each step uses
    one event, rotated at random; with probability `dense_share` it is a wedge. The graph network sees each of its
    `graph_events` events several times.

    The embedding loss pulls neighbours along a track to within `pull_to` times the radius, with weight `pull_weight`.
    It pushes hits of other particles to at least `push_to` times the radius from `anchors` hits drawn in each step.
    Two hits of a particle count as joined if they are at most `reach` positions apart along it: 2 bridges a lost
    edge. `filter_positive` and `gnn_positive` weigh true edges against false ones. They adapt the networks to the
    fixed cuts: the filter must lose almost no true edge, and the graph network must not join two tracks.
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
#: For tests and first trials: takes seconds instead of minutes; the weights find few tracks.
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
