"""Edges of small events, counted by hand, and those of the shipped networks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exatrkx_hpc.tracking.scoring.stages import StageScore, score_edges, total_stages
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent


def event(particle: list[int], pt: list[float]) -> TruthEvent:
    """Hits in the order of their radius."""
    n = len(particle)
    hits = np.zeros((n, 3), dtype=np.float32)
    hits[:, 0] = np.arange(n)
    momenta = np.array(pt, dtype=np.float32)[np.array(particle, dtype=np.int64)]
    return TruthEvent(
        hits=hits, particle=np.array(particle, dtype=np.int64), pt=momenta, eta=np.zeros(n, dtype=np.float32)
    )


def test_every_kind_of_edge_is_counted_once():
    # Particle 1 has the hits 0, 1, 2, particle 2 the hits 3, 4; 5 is noise. True edges: 01, 12, 34.
    truth = event([1, 1, 1, 2, 2, 0, 0], [0.0, 2.0, 0.5])
    edges = np.array([[1, 2, 3, 5, 6], [0, 0, 2, 4, 5]])  # true; of one particle; wrong; with noise; noise alone
    found = score_edges("filter", edges, truth, min_hits=3)
    assert found == StageScore(stage="filter", edges=5, right=2, true=3, kept=1, counted=2, counted_kept=1)
    assert (found.efficiency, found.counted_efficiency) == (pytest.approx(1 / 3), 0.5)
    assert (found.purity, found.neighbour_share) == (0.4, 0.2)


def test_it_does_not_matter_which_hit_an_edge_names_first():
    truth = event([1, 1, 1], [0.0, 2.0])
    edges = np.array([[0, 1], [1, 2]])
    assert score_edges("x", edges, truth) == score_edges("x", edges[::-1], truth)
    assert score_edges("x", edges, truth).efficiency == 1.0
    both = np.concatenate([edges, edges[::-1]], axis=1)
    assert score_edges("x", both, truth) == score_edges("x", edges, truth)


def test_no_edge_and_no_hit():
    none = score_edges("x", np.empty((2, 0), dtype=np.int64), event([1, 1], [0.0, 2.0]))
    assert none.efficiency == 0.0 and math.isnan(none.purity)
    empty = score_edges("x", np.empty((2, 0), dtype=np.int64), event([], [0.0]))
    assert empty.true == 0 and math.isnan(empty.efficiency)


def test_stages_add_up_by_name():
    one = tuple(StageScore(stage=s, edges=4, right=2, true=3, kept=1, counted=1, counted_kept=1) for s in "ab")
    both = total_stages([one, one, one])
    assert [(stage.stage, stage.edges, stage.true) for stage in both] == [("a", 12, 9), ("b", 12, 9)]
    assert total_stages([]) == ()
