"""Tracks written by hand against a truth written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hand_tracks import HITS, tracks, truth

from exatrkx_hpc.traccc.scoring.matching import match_tracks
from exatrkx_hpc.traccc.scoring.score import FITTED, score_tracks, total_track_scores
from exatrkx_hpc.traccc.tracks import Tracks, no_tracks


def of(particle: int, count: int = HITS, start: int = 0) -> list[int]:
    return list(range(particle * HITS + start, particle * HITS + start + count))


def test_complete_tracks_are_perfect():
    score = score_tracks(tracks(of(0), of(1), of(2), of(3)), truth())
    assert (score.particles, score.found, score.tracks, score.matched, score.duplicates) == (3, 3, 4, 4, 0)
    assert (score.efficiency, score.fake_rate, score.duplicate_rate, score.purity) == (1.0, 0.0, 0.0, 1.0)


def test_half_of_the_hits_is_not_enough():
    """A track needs more than half of its hits from the particle, and more than half of the particle's."""
    mixed = of(0, 4) + of(1, 4)
    score = score_tracks(tracks(mixed), truth())
    assert (score.found, score.matched, score.fake_rate) == (0, 0, 1.0)
    short, long = of(0, 4), of(1, 5)
    score = score_tracks(tracks(short, long), truth())
    assert (score.found, score.matched) == (1, 2)
    score = score_tracks(tracks(of(0, 5) + of(1, 3)), truth())
    assert (score.found, score.purity) == (1, 5 / 8)


def test_the_longest_of_several_tracks_is_not_a_duplicate():
    matches = match_tracks(tracks(of(0, 3), of(0, 5, 3), of(1)), truth())
    assert matches.duplicate.tolist() == [True, False, False]
    assert matches.shared.tolist() == [3, 5, 8]


def test_a_measurement_of_two_particles_counts_for_both():
    matches = match_tracks(tracks([0, *of(1, 4)]), truth(shared=True))
    assert (matches.owner[0], matches.shared[0]) == (1, 5)
    assert matches.hits.tolist() == [8, 9, 8, 8]


def test_measurements_that_nobody_made_belong_to_nobody():
    found = tracks(of(0))
    elsewhere = Tracks(
        parameters=found.parameters,
        lengths=found.lengths,
        measurements=found.measurements + np.float32(0.002),
        covariances=found.covariances,
        geometry_ids=found.geometry_ids,
    )
    matches = match_tracks(elsewhere, truth())
    assert matches.measurement.tolist() == [-1] * HITS
    assert (matches.owner[0], matches.matched[0]) == (-1, False)


def test_residuals_and_pulls_are_those_of_the_first_measurement():
    offset = (0.01, 0.02, 2 * np.pi - 0.03, -0.04, 0.05)
    score = score_tracks(tracks(of(0), of(1), of(3), of(0, 3), offset=offset), truth())
    assert score.residuals == pytest.approx(np.tile([0.01, 0.02, -0.03, -0.04, 0.05], (2, 1)), abs=1e-5)
    assert score.pulls == pytest.approx(100 * score.residuals, rel=1e-4)
    assert tuple(score.resolutions) == tuple(score.pull_widths) == FITTED
    rng = np.random.default_rng(0)
    one_each = (tracks(of(0), offset=rng.normal(0.0, 0.02, 5)) for _ in range(400))
    many = total_track_scores(score_tracks(one, truth()) for one in one_each)
    assert (many.particles, many.found) == (1200, 400)
    assert list(many.pull_widths.values()) == pytest.approx([2.0] * 5, abs=0.3)


def test_nothing_is_not_a_number():
    score = score_tracks(no_tracks(), truth())
    assert (score.efficiency, score.particles) == (0.0, 3)
    assert np.isnan([score.fake_rate, score.purity, score.pull_widths["qop"]]).all()
    assert np.isnan(total_track_scores([]).efficiency)
