"""Edges and their truth: the true edges of an event, and the edges a network should accept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Float32, Int64
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One event as an edge network sees it in training: hits `[N, 3]` (float32) and edges `[2, E]` (int64).

    `wanted` float32 `[E]` is 1 for two hits that should be joined, else 0; `weight` float32 `[E]` is 0 where
    the answer does not matter: two hits of one particle, but far apart along it.
    """

    hits: Float32
    edges: Int64
    wanted: Float32
    weight: Float32


def track_order(event: TruthEvent) -> Int64:
    """Return the position of each hit along its particle's track, int64 `[N]`, counted from the beam outwards."""
    order = np.lexsort((event.hits[:, 0], event.particle))
    particle = event.particle[order]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(particle, particle)
    return place


def true_edges(event: TruthEvent) -> Int64:
    """Return the pairs of neighbouring hits along the tracks, `[2, E]` (int64): what an ideal graph holds."""
    order = np.lexsort((event.hits[:, 0], event.particle))
    particle = event.particle[order]
    joined = (particle[1:] == particle[:-1]) & (particle[1:] != 0)
    return np.asarray([order[:-1][joined], order[1:][joined]], dtype=np.int64)


def are_strangers(event: TruthEvent, edges: Int64) -> NDArray[np.bool_]:
    """Return for each edge of `[2, E]` whether its hits are of different particles or include noise, `[E]`."""
    a, b = event.particle[edges[0]], event.particle[edges[1]]
    return np.asarray((a != b) | (a == 0))


def label_edges(event: TruthEvent, edges: Int64, *, reach: int) -> Graph:
    """Return edges `[2, E]` with their truth: hits at most `reach` positions apart along a track are joined."""
    place = track_order(event)
    strangers = are_strangers(event, edges)
    wanted = ~strangers & (np.abs(place[edges[0]] - place[edges[1]]) <= reach)
    return Graph(
        hits=event.hits,
        edges=edges,
        wanted=wanted.astype(np.float32),
        weight=(wanted | strangers).astype(np.float32),
    )
