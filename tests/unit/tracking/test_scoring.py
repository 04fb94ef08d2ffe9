"""Scores of small events, counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from exatrkx_hpc.tracking.scoring.graphs import true_edges
from exatrkx_hpc.tracking.scoring.score import Score, score_event, total
from exatrkx_hpc.tracking.scoring.stages import score_edges
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent


def truth(particle: list[int], pt: dict[int, float] | None = None) -> TruthEvent:
    n = len(particle)
    momenta = [0.0 if p == 0 else (pt or {}).get(p, 2.0) for p in particle]
    return TruthEvent(
        hits=np.zeros((n, 3), dtype=np.float32),
        particle=np.array(particle, dtype=np.int64),
        pt=np.array(momenta, dtype=np.float32),
        eta=np.zeros(n, dtype=np.float32),
    )


def score(labels: list[int], particle: list[int], **options) -> Score:
    pt = options.pop("pt", None)
    return score_event(np.array(labels, dtype=np.int64), truth(particle, pt), **options)


def test_right_labels_score_one_whatever_the_labels_are():
    result = score([7] * 6 + [-3] * 5 + [900], [1] * 6 + [2] * 5 + [0])
    assert result == Score(particles=2, found=2, tracks=2, matched=2, duplicates=0, matched_hits=11, right_hits=11)
    assert (result.efficiency, result.fake_rate, result.duplicate_rate, result.purity) == (1.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("wide", [2**53, 10**17 * 9 + 719925591539713, 2**63 - 1, 2**63 + 7, 2**64 - 2])
def test_names_next_to_each_other_are_two_whatever_their_size(wide):
    kind = np.uint64 if wide >= 2**63 else np.int64
    particle = np.array([wide] * 6 + [wide - 1] * 5, dtype=kind)
    event = replace(truth([1] * 6 + [2] * 5), particle=particle)
    assert score_event(particle[::-1].copy(), replace(event, particle=particle[::-1].copy())).found == 2
    assert score_event(particle, event) == score([1] * 6 + [2] * 5, [1] * 6 + [2] * 5)
    edges = score_edges("x", true_edges(event), event)
    assert (edges.true, edges.right) == (9, 9)


@pytest.mark.parametrize("none", [-1, 2**64 - 1])
def test_hits_without_a_track_are_no_track(none):
    labels = np.array([4] * 6 + [none] * 5, dtype=np.int64 if none < 0 else np.uint64)
    result = score_event(labels, truth([1] * 6 + [2] * 5))
    assert result == Score(particles=2, found=1, tracks=1, matched=1, duplicates=0, matched_hits=6, right_hits=6)
    assert score_event(labels[6:], truth([2] * 5), min_track_hits=1).tracks == 0


def test_a_negative_particle_is_one_like_any_other():
    event = truth([-7] * 6 + [0] * 3)
    assert score_event(np.zeros(9, dtype=np.int64), event).found == 1
    assert true_edges(event).shape == (2, 5)


def test_a_merged_pair_finds_the_larger_particle_only():
    # 6 of 11 hits are particle 1's: more than half of the track and all of the particle.
    result = score([0] * 11, [1] * 6 + [2] * 5)
    assert (result.particles, result.found, result.tracks, result.matched) == (2, 1, 1, 1)
    assert result.purity == pytest.approx(6 / 11)


def test_exactly_half_is_no_majority():
    result = score([0] * 12, [1] * 6 + [2] * 6)
    assert (result.found, result.tracks, result.matched) == (0, 1, 0)
    assert result.fake_rate == 1.0


def test_a_split_particle_is_found_by_its_larger_part_and_the_rest_is_a_duplicate():
    result = score([0] * 6 + [1] * 4, [1] * 10)
    assert (result.found, result.tracks, result.matched, result.duplicates) == (1, 2, 2, 1)
    assert (result.duplicate_rate, result.fake_rate) == (0.5, 0.0)


def test_two_halves_find_nothing_but_are_no_fakes():
    result = score([0] * 5 + [1] * 5, [1] * 10)
    assert (result.particles, result.found, result.matched, result.duplicates) == (1, 0, 2, 1)


def test_a_group_of_noise_is_a_fake_and_noise_is_nobody_to_find():
    result = score([0] * 5 + [1] * 6, [1] * 5 + [0] * 6)
    assert (result.particles, result.found, result.tracks, result.matched) == (1, 1, 2, 1)
    assert result.fake_rate == 0.5


def test_two_hits_make_no_track():
    result = score([0, 0, 1, 1, 1], [0, 0, 1, 1, 1])
    assert (result.tracks, result.matched) == (1, 1)


def test_only_hard_particles_with_enough_hits_count():
    particle = [1] * 5 + [2] * 5 + [3] * 4 + [4] * 5
    pt = {1: 2.0, 2: 1.0, 3: 5.0, 4: 1.1}  # 2 is not above 1 GeV, 3 has only 4 hits
    result = score(particle, particle, pt=pt)
    assert (result.particles, result.found, result.tracks, result.matched) == (2, 2, 4, 4)
    assert score(particle, particle, pt=pt, min_pt=0.5, min_hits=4).particles == 4


def test_a_mixed_event_in_full():
    particle = [1] * 6 + [2] * 6 + [3] * 5 + [0] * 4
    labels = [0, 0, 0, 0, 0, 9, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 4]
    # 0 finds particle 1 with five of six; 1 and 2 halve particle 2; 3 finds particle 3 with one hit of noise;
    # 4 is noise alone, 9 is a lone hit.
    result = score(labels, particle)
    assert result == Score(particles=3, found=2, tracks=5, matched=4, duplicates=1, matched_hits=17, right_hits=16)
    assert result.efficiency == pytest.approx(2 / 3)
    assert result.fake_rate == pytest.approx(1 / 5)
    assert result.duplicate_rate == pytest.approx(1 / 5)
    assert result.purity == pytest.approx(16 / 17)


def test_the_sum_weighs_particles_not_events():
    one, other = Score(particles=10, found=9, tracks=4, matched=4), Score(particles=2, found=0, tracks=1)
    both = total([one, other])
    assert both.efficiency == pytest.approx(9 / 12)
    assert both.fake_rate == pytest.approx(1 / 5)
    assert total([]) == Score()


def test_nothing_to_divide_by_is_nan():
    result = score([], [])
    assert result == Score()
    assert all(math.isnan(rate) for rate in (result.efficiency, result.fake_rate, result.purity))
    assert score([0, 0, 0], [0, 0, 0]).fake_rate == 1.0


def test_labels_of_another_event_are_refused():
    with pytest.raises(ValueError, match="2 labels for 3 hits"):
        score([0, 0], [1, 1, 1])
