"""Tracks written by hand against a truth written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from exatrkx_hpc.traccc.scoring.matching import match_tracks
from exatrkx_hpc.traccc.scoring.score import FITTED, score_tracks, total_track_scores
from exatrkx_hpc.traccc.simulation.truth import Particles, Passages, Truth
from exatrkx_hpc.traccc.tracks import Tracks, no_tracks

HITS = 8
N_PARTICLES = 4


def truth(*, pt=(2.0, 2.0, 2.0, 0.5), shared: bool = False) -> Truth:
    """Return four particles with eight measurements each, one on a module; the last has a low pT.

    The first measurement is also one of the second particle's if `shared`.
    """
    n = N_PARTICLES * HITS
    particle, measurement = np.repeat(np.arange(N_PARTICLES), HITS), np.arange(n)
    if shared:
        particle, measurement = np.append(particle, 1), np.append(measurement, 0)
    order = np.argsort(measurement, kind="stable")
    particle, measurement = particle[order], measurement[order]
    local = np.column_stack([np.arange(n) * 0.01, np.zeros(n)])
    return Truth(
        geometry_ids=measurement_module(np.arange(n)),
        local=local,
        passages=Passages(
            measurement=measurement,
            particle=particle,
            local=local[measurement],
            phi=np.full(len(measurement), 3.1),
            theta=np.full(len(measurement), 1.5),
            qop=np.full(len(measurement), 0.5),
            time=np.zeros(len(measurement)),
        ),
        particles=Particles(
            vertex=np.zeros(N_PARTICLES, dtype=np.int64),
            generated=np.ones(N_PARTICLES, dtype=np.bool_),
            displaced=np.zeros(N_PARTICLES, dtype=np.bool_),
            charge=np.ones(N_PARTICLES, dtype=np.int64),
            pt=np.array(pt),
            phi=np.zeros(N_PARTICLES),
            eta=np.zeros(N_PARTICLES),
            position=np.zeros((N_PARTICLES, 3)),
        ),
    )


def measurement_module(measurement: np.ndarray) -> np.ndarray:
    return 1000 + measurement % HITS


def tracks(*members: list[int], offset=(0.0, 0.0, 0.0, 0.0, 0.0)) -> Tracks:
    """Return tracks of these measurements, whose parameters are the true ones and an offset, with the variance 1e-4."""
    index = np.array([number for track in members for number in track], dtype=np.int64)
    lengths = np.array([len(track) for track in members])
    first = np.cumsum(lengths) - lengths
    local = np.column_stack([index * 0.01, np.zeros(len(index))])
    parameters = np.column_stack(
        [
            np.ones((len(lengths), 2)),
            local[first] + offset[:2],
            np.tile([3.1 + offset[2], 1.5 + offset[3], 0.5 + offset[4], 0.0], (len(lengths), 1)),
        ]
    )
    return Tracks(
        parameters=parameters.astype(np.float32),
        lengths=lengths,
        measurements=np.column_stack([local, np.zeros((len(index), 4))]).astype(np.float32),
        covariances=np.tile(1e-4 * np.eye(5).reshape(-1), (len(index), 1)).astype(np.float32),
        geometry_ids=measurement_module(index),
    )


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
