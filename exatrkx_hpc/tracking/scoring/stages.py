"""Efficiency and purity of the edges after each stage.

A true edge joins two consecutive hits of one particle. An edge is right if both its hits are of one particle,
consecutive or not, because joining them is correct. Edge efficiency and purity follow the Exa.TrkX pipeline (Ju et
al., Eur. Phys. J. C 81 (2021) 876, arXiv:2103.06995). Its purity counts only true edges; here this is
`neighbour_share`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exatrkx_hpc.tracking.constants import Int64
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.scoring.graphs import are_strangers, true_edges
from exatrkx_hpc.tracking.scoring.score import MIN_PARTICLE_HITS, MIN_PT_GEV
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent

if TYPE_CHECKING:
    from exatrkx_hpc.tracking.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class StageScore:
    """Counts over one or more events, after one stage; the rates are their quotients, nan if the denominator is 0.

    Of `edges`, `right` join hits of one particle, and `kept` are true edges. `true` is the number of true edges of the
    events. `counted` of the true edges belong to particles that count in a score; `counted_kept` of those are kept.
    """

    stage: str
    edges: int
    right: int
    true: int
    kept: int
    counted: int
    counted_kept: int

    @property
    def efficiency(self) -> float:
        """The share of true edges that are kept."""
        return _share(self.kept, self.true)

    @property
    def counted_efficiency(self) -> float:
        """The share of kept edges among the true edges of particles that count."""
        return _share(self.counted_kept, self.counted)

    @property
    def purity(self) -> float:
        """The share of edges that join two hits of one particle."""
        return _share(self.right, self.edges)

    @property
    def neighbour_share(self) -> float:
        """The share of edges that are true edges."""
        return _share(self.kept, self.edges)


def score_edges(
    stage: str,
    edges: Int64,
    truth: TruthEvent,
    *,
    min_pt: float = MIN_PT_GEV,
    min_hits: int = MIN_PARTICLE_HITS,
) -> StageScore:
    """Return the counts for the edges `[2, E]` (int64) of one event after a stage.

    An edge in both directions, as with `edge_order` `both`, counts once.
    """
    codes, first = np.unique(_codes(edges, len(truth.particle)), return_index=True)
    edges = edges[:, first]
    wanted = true_edges(truth)
    n_hits = len(truth.particle)
    kept = np.isin(_codes(wanted, n_hits), codes)
    _, place, size = np.unique(truth.particle, return_inverse=True, return_counts=True)
    counts = (truth.pt > min_pt) & (size[place.reshape(-1)] >= min_hits) & (truth.particle != 0)
    counted = counts[wanted[0]]
    return StageScore(
        stage=stage,
        edges=edges.shape[1],
        right=int((~are_strangers(truth, edges)).sum()),
        true=wanted.shape[1],
        kept=int(kept.sum()),
        counted=int(counted.sum()),
        counted_kept=int((kept & counted).sum()),
    )


def score_stages(
    pipeline: Pipeline, truth: TruthEvent, *, min_pt: float = MIN_PT_GEV, min_hits: int = MIN_PARTICLE_HITS
) -> tuple[StageScore, ...]:
    """Run one event through a pipeline; return the counts of the candidates, after the filter, and after the gnn."""
    stages, settings = pipeline.stages(truth.hits), pipeline.settings
    accepted = apply_filter(stages.edges, stages.gnn_logits, cut=settings.gnn_cut, scores=settings.scores)
    parts = (("candidates", stages.candidates), ("filter", stages.edges), ("gnn", accepted))
    return tuple(score_edges(name, edges, truth, min_pt=min_pt, min_hits=min_hits) for name, edges in parts)


def total_stages(events: Sequence[tuple[StageScore, ...]]) -> tuple[StageScore, ...]:
    """Return the sum of the counts of several events, stage by stage; empty without events."""
    names = ("edges", "right", "true", "kept", "counted", "counted_kept")
    return tuple(
        StageScore(stage=same[0].stage, **{name: sum(getattr(one, name) for one in same) for name in names})
        for same in zip(*events, strict=True)
    )


def _codes(edges: Int64, n_hits: int) -> Int64:
    """Return one number for each edge of `[2, E]`, independent of the order of its hits."""
    return np.asarray(edges.max(axis=0, initial=0) * n_hits + edges.min(axis=0, initial=n_hits))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
