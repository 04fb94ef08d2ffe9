"""Edges and their truth, on one small event whose answers can be seen."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking.scoring.graphs import are_strangers, label_edges, track_order, true_edges
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent

# Particle 1 has hits 4, 0, 2, 5 from the beam outwards, particle 2 has 3 and 1; hit 6 is noise.
RADIUS = [0.2, 0.5, 0.3, 0.1, 0.1, 0.4, 0.3]
PARTICLE = [1, 2, 1, 2, 1, 1, 0]


def small() -> TruthEvent:
    hits = np.zeros((7, 3), dtype=np.float32)
    hits[:, 0] = RADIUS
    zeros = np.zeros(7, dtype=np.float32)
    return TruthEvent(hits=hits, particle=np.array(PARTICLE), pt=zeros, eta=zeros)


def test_the_place_along_a_track_counts_from_the_beam():
    assert track_order(small())[:6].tolist() == [1, 1, 2, 0, 0, 3]


def test_true_edges_join_neighbours_along_a_track_and_no_noise():
    assert {tuple(pair) for pair in true_edges(small()).T.tolist()} == {(4, 0), (0, 2), (2, 5), (3, 1)}


def test_noise_is_a_stranger_to_everyone_and_to_itself():
    edges = np.array([[0, 0, 6, 6], [4, 1, 0, 6]])
    assert are_strangers(small(), edges).tolist() == [False, True, True, True]


def test_edges_within_reach_are_wanted_and_longer_ones_do_not_matter():
    #                 next, next but one, too far, strangers, noise
    edges = np.array([[4, 4, 4, 0, 6], [0, 2, 5, 1, 2]])
    graph = label_edges(small(), edges, reach=2)
    assert graph.wanted.tolist() == [1, 1, 0, 0, 0]
    assert graph.weight.tolist() == [1, 1, 0, 1, 1]
    assert label_edges(small(), edges, reach=1).wanted.tolist() == [1, 0, 0, 0, 0]


def test_an_event_without_hits_has_no_edges():
    empty = TruthEvent(
        hits=np.empty((0, 3), dtype=np.float32),
        particle=np.empty(0, dtype=np.int64),
        pt=np.empty(0, dtype=np.float32),
        eta=np.empty(0, dtype=np.float32),
    )
    assert true_edges(empty).shape == (2, 0)
    assert label_edges(empty, np.empty((2, 0), dtype=np.int64), reach=2).wanted.shape == (0,)
