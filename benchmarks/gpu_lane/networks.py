"""Networks of the original service's size with random weights: as much work as the original networks, not for physics.

The embedding's scale and the filter's offset are set so that an event has as many candidate edges, and keeps as many
of them, as with the shipped networks. Otherwise the load of the other stages would differ.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, N_FEATURES, Float32, NetworkSettings
from exatrkx_hpc.tracking.filtering import logit
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.training.networks import Filter, Gnn
from gpu_lane.base import SMALL, WITHIN, event

#: Embed 3 -> 512 x 5 -> 8; the graph network 64 wide, with 8 iterations. The filter's size is not published.
ORIGINAL = NetworkSettings(embed_width=512, embed_layers=5, filter_width=64, gnn_width=64, gnn_iterations=8)


class OriginalEmbed(nn.Module):
    """Linear layers with tanh between them, directly on the hits, as in the original embedding."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        sizes = [N_FEATURES, *[settings.embed_width] * settings.embed_layers, settings.embed_dimensions]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [_unsaturated(nn.Linear(n_in, n_out)), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])
        self.scale = 1.0

    def forward(self, hits: Tensor) -> Tensor:
        """Return the embedding `[N, D]` of hits `[N, 3]`."""
        return self.layers(hits) * self.scale


class ShiftedFilter(nn.Module):
    """A filter with a constant added to its logits."""

    def __init__(self, network: Filter) -> None:
        super().__init__()
        self.network = network
        self.shift = 0.0

    def forward(self, hits: Tensor, edges: Tensor) -> Tensor:
        """Return one logit per edge, `[E, 1]`."""
        return self.network(hits, edges) + self.shift


def write_networks(folder: Path, shipped: Path, *, settings: NetworkSettings = ORIGINAL) -> Path:
    """Write `folder/{embed,filter,gnn}/1/model.pt`, sized by `settings`, unless it exists; return the folder."""
    if folder.is_dir():
        return folder
    torch.manual_seed(1)
    hits = event(SMALL)
    usual = Pipeline.load(shipped).stages(hits)
    embed, judge = OriginalEmbed(settings).eval(), ShiftedFilter(Filter(settings)).eval()
    with torch.inference_mode():
        embed.scale = _scale(embed(torch.from_numpy(hits)).numpy(), usual.candidates.shape[1])
        edges = fixed_radius_edges(embed(torch.from_numpy(hits)), **WITHIN)
        logits = judge(torch.from_numpy(hits), edges).numpy()
    share = usual.edges.shape[1] / usual.candidates.shape[1]
    judge.shift = logit(DEFAULT_SETTINGS.filter_cut) - float(np.quantile(logits, 1 - share))
    aside = folder.with_name(f".{folder.name}.part")
    for name, network in {"embed": embed, "filter": judge, "gnn": Gnn(settings).eval()}.items():
        (aside / name / "1").mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated
            torch.jit.script(network).save(str(aside / name / "1" / "model.pt"))
    return aside.rename(folder)


def _unsaturated(layer: nn.Linear) -> nn.Linear:
    """Initialise a layer before tanh so that it keeps the spread of values; PyTorch's default shrinks it."""
    nn.init.xavier_normal_(layer.weight, gain=5 / 3)
    nn.init.normal_(layer.bias, std=0.1)
    return layer


def _scale(embedding: Float32, wanted: int) -> float:
    """Return the factor with which an event has about `wanted` candidates, found by bisection."""
    low, high = 1e-2, 1e4
    for _ in range(25):
        middle = (low * high) ** 0.5
        found = fixed_radius_edges(embedding * np.float32(middle), **WITHIN).shape[1]
        low, high = (middle, high) if found > wanted else (low, middle)
    return high
