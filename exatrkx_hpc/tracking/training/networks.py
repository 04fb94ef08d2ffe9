"""The three networks: they take plain hits and compute all further features inside.

Each can be scripted with TorchScript, takes its arguments in the order of the service's inputs (`INPUT__0`,
`INPUT__1`), runs on the device of its weights, and accepts an event without hits or without edges.
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

#: Edges per block on a CPU: the data of 16,384 edges of 32 numbers stays in the caches of a core.
_BLOCK = 16_384
#: Edges per block on other devices: 14 million candidates (an event of 100,000 hits) would take 9 GB in the filter.
_LARGE_BLOCK = 1 << 20


class HitFeatures(nn.Module):  # type: ignore[misc]
    """Turns hits `[N, 3]` into features that do not depend on phi: r (m), z (m), eta and log r, `[N, 4]`."""

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


class Line(nn.Module):  # type: ignore[misc]
    """Turns edges into features of the line between their ends that no sum over the ends could give, `[E, 7]`."""

    width = 7

    def __init__(self) -> None:
        super().__init__()
        self.phi_scale = PHI_SCALE

    def forward(self, features: Tensor, phi: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """Return the features `[E, 7]` of the edges from hits `inner` to hits `outer` (`[E]`, int64).

        `features` `[N, 4]` are those of the hits; `phi` `[N]` are their angles over pi. The edge features are the
        steps in eta and phi, the slope dz/dr, and dphi/dr and z0 (where the line meets the beam line), each at a coarse
        and a fine scale. x / (1 + |x|) limits large values, which carry little information, at low cost.
        """
        r, z, eta = features[:, 0].contiguous(), features[:, 1].contiguous(), features[:, 2].contiguous()
        r_in, z_in = r.index_select(0, inner), z.index_select(0, inner)
        turns = phi.index_select(0, outer) - phi.index_select(0, inner)
        dphi = (turns - 2.0 * torch.round(0.5 * turns)) * self.phi_scale
        dr = (r.index_select(0, outer) - r_in).clamp(min=2e-3)
        bend, slope = dphi / dr, (z.index_select(0, outer) - z_in) / dr
        z0 = z_in - r_in * slope
        deta = eta.index_select(0, outer) - eta.index_select(0, inner)
        line = torch.stack([10.0 * deta, 10.0 * dphi, 1.5 * bend, 10.0 * bend, 0.5 * slope, 4.0 * z0, 25.0 * z0])
        # Each column is contiguous; a matrix multiplication is as fast with this layout.
        return (line / (1.0 + line.abs())).t()


class EdgeLayer(nn.Module):  # type: ignore[misc]
    """A linear layer and a ReLU on (edge, inner hit, outer hit), computed in a cheap order.

    There are fewer hits than edges, so `ends` multiplies each hit once, and the layer gathers the products:
    `W e + (A h)[inner] + (B h)[outer]`, instead of multiplying a row of all three for each edge.
    """

    def __init__(self, n_edge: int, n_hit: int, n_out: int) -> None:
        super().__init__()
        self.of_edge = nn.Linear(n_edge, n_out)
        self.of_inner = nn.Linear(n_hit, n_out, bias=False)
        self.of_outer = nn.Linear(n_hit, n_out, bias=False)

    def ends(self, hit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the products `A h` and `B h` `[N, n_out]` of the hits `[N, n_hit]`."""
        return self.of_inner(hit), self.of_outer(hit)

    def forward(self, edge: Tensor, ends: tuple[Tensor, Tensor], inner: Tensor, outer: Tensor) -> Tensor:
        """Return `[E, n_out]` of edges `[E, n_edge]` from hits `inner` to hits `outer` and of `ends`."""
        out: Tensor = self.of_edge(edge)
        return out.add_(ends[0].index_select(0, inner)).add_(ends[1].index_select(0, outer)).relu_()


def _in_blocks(edges: Tensor, block: int, large_block: int, training: bool) -> list[Tensor]:
    """Return the edges `[2, E]` in one or more parts of at most `block` edges (`large_block` on other devices).

    On a CPU the data of one part stays in the cache; on other devices `large_block` bounds the memory. In training all
    edges are one part.
    """
    if training:
        return [edges]
    parts: list[Tensor] = edges.split(block if edges.device.type == "cpu" else large_block, dim=1)
    return parts


def _known(hits: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return safe hits `[N, 3]` and edges `[2, E]`, and a mask `[E]` of the edges with a hit that does not exist.

    On a GPU such an edge would fail an assertion, after which the process can no longer use the GPU. It gets an extra
    hit after the last one, so that it changes no other edge. Valid edges, the usual case, cost only one check: hits and
    edges are returned unchanged, with an empty mask, `[0]`.
    """
    n = hits.shape[0]
    if edges.numel() > 0:
        low, high = torch.aminmax(edges)
        if bool((low < 0) | (high >= n)):
            strange = ((edges < 0) | (edges >= n)).any(dim=0)
            hits = torch.cat([hits, hits.new_zeros([1, hits.shape[1]])])
            return hits, edges.masked_fill(strange, n), strange
    return hits, edges, edges.new_zeros([0], dtype=torch.bool)


def _unknown(logits: Tensor, strange: Tensor) -> Tensor:
    """Return the logits `[E]` or `[E, 1]` with NaN for the edges that `_known` marked."""
    if strange.numel() == 0:
        return logits
    return logits.masked_fill(strange if logits.dim() == 1 else strange.unsqueeze(1), float("nan"))


def outward(hits: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hit numbers `[E]` at the inner and at the outer end of the edges `[2, E]`.

    The radius decides; for two hits of one barrel layer, z decides. So the order of the hits in an edge does not
    matter.
    """
    a, b = edges[0], edges[1]
    # A difference in r counts more than any difference in z; radii closer than 50 nm count as equal.
    key = hits[:, 0].double() * 1e9 + hits[:, 2].double()
    swap = key.index_select(0, a) > key.index_select(0, b)
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _perceptron(sizes: list[int]) -> nn.Sequential:
    """Return linear layers of `sizes` with a ReLU between any two."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Embed(nn.Module):  # type: ignore[misc]
    """Places hits so that neighbours along one track lie close: hits `[N, 3]` -> `[N, 8]`."""

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        self.hit_features = HitFeatures()
        self.phi_scale = PHI_SCALE
        hidden = [settings.embed_width] * settings.embed_layers
        # With harmonics of phi, the network need not learn a fine angle from a single cosine and sine.
        self.layers = _perceptron([HitFeatures.width + 8, *hidden, settings.embed_dimensions])

    def forward(self, hits: Tensor) -> Tensor:
        """Return the embedding `[N, 8]` (float32) of hits `[N, 3]` (float32)."""
        phi = hits[:, 1] * self.phi_scale
        angles = torch.stack([phi, 2.0 * phi, 4.0 * phi, 8.0 * phi], dim=1)
        known = [self.hit_features(hits), torch.cos(angles), torch.sin(angles)]
        out: Tensor = self.layers(torch.cat(known, dim=1))
        return out


class Filter(nn.Module):  # type: ignore[misc]
    """Judges each candidate edge alone: hits `[N, 3]`, edges `[2, E]` -> logits `[E, 1]`.

    The clients of the original service expect the last axis.
    """

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        self.block = _BLOCK
        self.large_block = _LARGE_BLOCK
        self.hit_features = HitFeatures()
        self.line = Line()
        self.first = EdgeLayer(Line.width, HitFeatures.width, settings.filter_width)
        self.layers = _perceptron([settings.filter_width] * settings.filter_layers + [1])

    def forward(self, hits: Tensor, edges: Tensor) -> Tensor:
        """Return one logit per edge (int64), `[E, 1]` (float32), NaN for an edge with a hit that does not exist."""
        hits, edges, strange = _known(hits, edges)
        features = self.hit_features(hits)
        ends = self.first.ends(features)
        logits: list[Tensor] = []
        for part in _in_blocks(edges, self.block, self.large_block, self.training):
            inner, outer = outward(hits, part)
            line = self.line(features, hits[:, 1], inner, outer)
            logits.append(self.layers(self.first(line, ends, inner, outer)))
        return _unknown(torch.cat(logits), strange)


class Gnn(nn.Module):  # type: ignore[misc]
    """Judges each edge by the edges around it: hits `[N, 3]`, edges `[2, E]` -> logits `[E]`.

    An interaction network, after Battaglia et al., arXiv:1612.00222: in each iteration every edge is updated from its
    two hits, and every hit from the sum of its arriving and the sum of its leaving edges.
    """

    def __init__(self, settings: NetworkSettings = DEFAULT_NETWORKS) -> None:
        super().__init__()
        width = settings.gnn_width
        self.block = _BLOCK
        self.large_block = _LARGE_BLOCK
        self.iterations = settings.gnn_iterations
        self.hit_features = HitFeatures()
        self.line = Line()
        self.encode_hit = _perceptron([HitFeatures.width, width, width])
        self.encode_edge = EdgeLayer(Line.width, HitFeatures.width, width)
        self.encode_edge_again = nn.Linear(width, width)
        self.edge_step = EdgeLayer(width, width, width)
        self.edge_step_again = nn.Linear(width, width)
        self.hit_step = _perceptron([3 * width, width, width])
        self.edge_norm = nn.LayerNorm(width)
        self.hit_norm = nn.LayerNorm(width)
        self.judge = _perceptron([width, width, 1])

    def forward(self, hits: Tensor, edges: Tensor) -> Tensor:
        """Return one logit per edge (int64), `[E]` (float32), NaN for an edge with a hit that does not exist."""
        hits, edges, strange = _known(hits, edges)
        features = self.hit_features(hits)
        hit = self.encode_hit(features)
        ends = self.encode_edge.ends(features)
        inner: list[Tensor] = []
        outer: list[Tensor] = []
        edge: list[Tensor] = []
        for part in _in_blocks(edges, self.block, self.large_block, self.training):
            first, second = outward(hits, part)
            line = self.line(features, hits[:, 1], first, second)
            inner.append(first)
            outer.append(second)
            edge.append(self.encode_edge_again(self.encode_edge(line, ends, first, second)))
        for _ in range(self.iterations):
            ends = self.edge_step.ends(hit)
            arriving, leaving = torch.zeros_like(hit), torch.zeros_like(hit)
            for k in range(len(edge)):
                step = self.edge_step_again(self.edge_step(edge[k], ends, inner[k], outer[k]))
                edge[k] = self.edge_norm(edge[k] + step)
                arriving = arriving.index_add_(0, outer[k], edge[k])
                leaving = leaving.index_add_(0, inner[k], edge[k])
            hit = self.hit_norm(hit + self.hit_step(torch.cat([hit, arriving, leaving], dim=1)))
        return _unknown(torch.cat([self.judge(part) for part in edge]).reshape(-1), strange)
