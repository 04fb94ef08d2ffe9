"""The three networks: they take plain hits and compute every feature that they need inside.

Each can be scripted with TorchScript, takes its arguments in the order of the service's inputs (`INPUT__0`,
`INPUT__1`), runs on the device of its weights, and accepts an event without any hit or any edge.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from exatrkx_hpc.tracking.constants import (
    DEFAULT_NETWORKS,
    PHI_SCALE,
    R_SCALE_MM,
    Z_SCALE_MM,
    NetworkSettings,
)


class HitFeatures(nn.Module):  # type: ignore[misc]
    """Turns hits `[N, 3]` into what does not depend on phi: r (m), z (m), eta and log r, `[N, 4]`."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        # Lengths in metres make features of order one.
        self.r_scale = R_SCALE_MM / 1000.0
        self.z_scale = Z_SCALE_MM / 1000.0

    def forward(self, hits: Tensor) -> Tensor:
        """Return the features `[N, 4]` of hits `[N, 3]`."""
        r = hits[:, 0] * self.r_scale
        z = hits[:, 2] * self.z_scale
        safe = r.clamp(min=1e-3)
        return torch.stack([r, z, 0.5 * torch.asinh(z / safe), 1.0 + 0.5 * torch.log(safe)], dim=1)


class EdgeFeatures(nn.Module):  # type: ignore[misc]
    """Turns edges into what both ends and the straight line between them tell, `[E, 14]`."""

    width = 14

    def __init__(self) -> None:
        super().__init__()
        self.hit_features = HitFeatures()
        self.phi_scale = PHI_SCALE

    def forward(self, hits: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """Return the features `[E, 14]` of the edges from hits `inner` to hits `outer` (`[E]`, int64).

        They are r, z and eta of both ends; the steps in r, z, eta and phi; the slopes dphi/dr, its size and
        dz/dr; and z0, where the line meets the beam line. asinh tames the large values, which tell little.
        """
        first = self.hit_features(hits.index_select(0, inner))
        second = self.hit_features(hits.index_select(0, outer))
        step = second - first
        turns = hits[:, 1].index_select(0, outer) - hits[:, 1].index_select(0, inner)
        dphi = (turns - 2.0 * torch.round(0.5 * turns)) * self.phi_scale
        dr = step[:, 0].clamp(min=2e-3)
        bend, slope = dphi / dr, step[:, 1] / dr
        z0 = first[:, 1] - first[:, 0] * slope
        line = [
            4.0 * step[:, 0],
            2.0 * step[:, 1],
            torch.asinh(40.0 * step[:, 2]),
            torch.asinh(50.0 * dphi),
            torch.asinh(3.0 * bend),
            torch.asinh(3.0 * bend.abs()),
            torch.asinh(slope),
            torch.asinh(20.0 * z0),
        ]
        return torch.cat([first[:, :3], second[:, :3], torch.stack(line, dim=1)], dim=1)


def outward(hits: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hit numbers `[E]` at the inner and at the outer end of the edges `[2, E]`.

    The radius decides, and between two hits of one barrel layer z does, so that it never matters which of the
    two an edge names first.
    """
    a, b = edges[0], edges[1]
    r, z = hits[:, 0], hits[:, 2]
    r_a, r_b = r.index_select(0, a), r.index_select(0, b)
    swap = (r_a > r_b) | ((r_a == r_b) & (z.index_select(0, a) > z.index_select(0, b)))
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _perceptron(sizes: list[int]) -> nn.Sequential:
    """Return linear layers of `sizes` with a ReLU between any two."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Embed(nn.Module):  # type: ignore[misc]
    """Places hits so that neighbours along one track lie close: hits `[N, 3]` -> `[N, 8]`."""

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        self.hit_features = HitFeatures()
        self.phi_scale = PHI_SCALE
        hidden = [settings.embed_width] * settings.embed_layers
        # Harmonics of phi spare the network to learn a fine angle from a single cosine and sine.
        self.layers = _perceptron([HitFeatures.width + 6, *hidden, settings.embed_dimensions])

    def forward(self, hits: Tensor) -> Tensor:
        """Return the embedding `[N, 8]` (float32) of hits `[N, 3]` (float32)."""
        phi = hits[:, 1] * self.phi_scale
        waves = [torch.cos(phi), torch.sin(phi), torch.cos(2.0 * phi), torch.sin(2.0 * phi)]
        waves += [torch.cos(4.0 * phi), torch.sin(4.0 * phi)]
        out: Tensor = self.layers(torch.cat([self.hit_features(hits), torch.stack(waves, dim=1)], dim=1))
        return out


class Filter(nn.Module):  # type: ignore[misc]
    """Judges each candidate edge alone: hits `[N, 3]`, edges `[2, E]` -> logits `[E, 1]`.

    The last axis is that of the original service, whose clients expect it.
    """

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        self.edge_features = EdgeFeatures()
        hidden = [settings.filter_width] * settings.filter_layers
        self.layers = _perceptron([EdgeFeatures.width, *hidden, 1])

    def forward(self, hits: Tensor, edges: Tensor) -> Tensor:
        """Return a logit for each edge, `[E, 1]` (float32); `edges` are int64 hit numbers."""
        inner, outer = outward(hits, edges)
        out: Tensor = self.layers(self.edge_features(hits, inner, outer))
        return out


class Gnn(nn.Module):  # type: ignore[misc]
    """Judges each edge by the edges around it: hits `[N, 3]`, edges `[2, E]` -> logits `[E]`.

    An interaction network, after Battaglia et al., arXiv:1612.00222: in each iteration every edge looks at its
    two hits, and every hit sums up its edges, those that come from inside apart from those that lead out.
    """

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        width = settings.gnn_width
        self.iterations = settings.gnn_iterations
        self.hit_features = HitFeatures()
        self.edge_features = EdgeFeatures()
        self.encode_hit = _perceptron([HitFeatures.width, width, width])
        self.encode_edge = _perceptron([EdgeFeatures.width, width, width])
        self.edge_step = _perceptron([3 * width, width, width])
        self.hit_step = _perceptron([3 * width, width, width])
        self.edge_norm = nn.LayerNorm(width)
        self.hit_norm = nn.LayerNorm(width)
        self.judge = _perceptron([width, width, 1])

    def forward(self, hits: Tensor, edges: Tensor) -> Tensor:
        """Return a logit for each edge, `[E]` (float32); `edges` are int64 hit numbers."""
        inner, outer = outward(hits, edges)
        hit = self.encode_hit(self.hit_features(hits))
        edge = self.encode_edge(self.edge_features(hits, inner, outer))
        for _ in range(self.iterations):
            ends = [edge, hit.index_select(0, inner), hit.index_select(0, outer)]
            edge = self.edge_norm(edge + self.edge_step(torch.cat(ends, dim=1)))
            arriving = torch.zeros_like(hit).index_add(0, outer, edge)
            leaving = torch.zeros_like(hit).index_add(0, inner, edge)
            hit = self.hit_norm(hit + self.hit_step(torch.cat([hit, arriving, leaving], dim=1)))
        out: Tensor = self.judge(edge)
        return out.reshape(-1)
