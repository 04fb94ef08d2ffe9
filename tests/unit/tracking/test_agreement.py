"""Comparing edges as sets and labels as partitions."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking.scoring.agreement import compare_edges, hits_in_other_tracks, same_partition

LINE = np.array([[0.0], [1.0], [2.0], [3.0 + 1e-6]], dtype=np.float32)


def edges(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def test_the_order_of_edges_and_of_their_ends_does_not_matter():
    found = compare_edges(edges((1, 0), (2, 1)), edges((1, 2), (0, 1)), LINE, radius=1.0)
    assert (found.common, found.at_radius, found.different, found.agree) == (2, 0, 0, True)


def test_an_edge_at_the_radius_is_counted_and_excused():
    found = compare_edges(edges((1, 0), (3, 2)), edges((1, 0)), LINE, radius=1.0)
    assert (found.common, found.at_radius, found.different, found.agree) == (1, 1, 0, True)
    assert not compare_edges(edges((3, 2)), edges(), LINE, radius=1.0, tolerance=1e-8).agree


def test_an_edge_that_should_not_be_there_is_not_excused():
    found = compare_edges(edges((1, 0)), edges((1, 0), (2, 0)), LINE, radius=1.0)
    assert (found.common, found.at_radius, found.different, found.agree) == (1, 0, 1, False)


def test_no_edges_agree_with_no_edges():
    assert compare_edges(edges(), edges(), LINE, radius=1.0).agree


def test_labels_are_one_partition_whatever_their_numbers():
    def same(first: list[int], second: list[int]) -> bool:
        return same_partition(np.array(first), np.array(second))

    assert same([0, 0, 1], [7, 7, -2])
    assert same([], [])
    assert not same([0, 0, 1], [0, 1, 1])
    assert not same([0, 0, 1], [0, 0, 0])
    assert not same([0, 1, 2], [0, 0, 2])
    assert not same([0, 0], [0, 0, 0])


def test_a_hit_is_in_another_track_when_one_hit_of_its_track_is():
    def others(first: list[int], second: list[int]) -> int:
        return hits_in_other_tracks(np.array(first), np.array(second))

    assert others([0, 0, 1], [7, 7, -2]) == others([], []) == 0
    assert others([0, 0, 1, 2], [0, 1, 1, 2]) == 3
    assert others([0, 0, 1, 1], [0, 0, 0, 0]) == 4
