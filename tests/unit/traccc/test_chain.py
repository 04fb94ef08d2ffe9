"""The chain finds the particles of simulated events, whatever the order of the cells, and the smallest events work."""

from __future__ import annotations

import numpy as np
import pytest
from cell_events import NOWHERE, PIXELS, cells_of, chosen, small_event

pytest.importorskip("acts")

from exatrkx_hpc.traccc.chain import MAX_COVARIANCE, Chain, _tracks
from exatrkx_hpc.traccc.clusters import Measurements
from exatrkx_hpc.traccc.detector import UnknownModule
from exatrkx_hpc.traccc.scoring.matching import match_tracks
from exatrkx_hpc.traccc.scoring.score import score_tracks
from exatrkx_hpc.traccc.tracks import Tracks, no_tracks
from exatrkx_hpc.tracking.tensors import BadTensor

pytestmark = pytest.mark.slow
FIELDS = ("parameters", "lengths", "measurements", "covariances", "geometry_ids")


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def same(one: Tracks, other: Tracks) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def check_shapes(tracks: Tracks) -> None:
    total = int(tracks.lengths.sum())
    shapes = [getattr(tracks, name).shape for name in FIELDS]
    assert shapes == [(len(tracks), 8), (len(tracks),), (total, 6), (total, 25), (total,)]
    kinds = [getattr(tracks, name).dtype for name in FIELDS]
    assert kinds == [np.float32, np.int64, np.float32, np.float32, np.int64]


def test_it_finds_the_particles_of_an_event(chain):
    event = small_event()
    tracks = chain.find_tracks(event.cells)
    check_shapes(tracks)
    score = score_tracks(tracks, event.truth)
    assert score.efficiency > 0.8
    assert score.fake_rate == 0.0
    assert score.purity > 0.95


def test_a_track_is_a_fit_from_the_inside_out(chain):
    event = small_event()
    tracks = chain.find_tracks(event.cells)
    chi2, ndf = tracks.parameters[:, 0], tracks.parameters[:, 1]
    assert ndf.tolist() == (2 * tracks.lengths - 5).tolist()
    assert 0.3 < np.median(chi2 / ndf) < 2.5
    assert np.array_equal(tracks.parameters[:, 4:], tracks.measurements[tracks.first, 2:])
    apart = np.abs(tracks.parameters[:, 2:4] - tracks.measurements[tracks.first, :2])
    assert (apart.max(axis=0) < (0.1, 0.2)).all()
    # Times, and so the distances from the beam, grow along the track.
    times = np.split(tracks.measurements[:, 5], tracks.first[1:])
    assert all((np.diff(time) > 0).all() for time in times)
    covariance = tracks.covariances.reshape(-1, 5, 5)
    assert np.allclose(covariance, covariance.transpose(0, 2, 1), rtol=1e-3, atol=1e-9)
    assert (np.diagonal(covariance, axis1=1, axis2=2) > 0).all()


def test_the_momenta_are_the_particles(chain):
    event = small_event()
    tracks = chain.find_tracks(event.cells)
    matches = match_tracks(tracks, event.truth)
    particles = event.truth.particles
    owner = matches.owner[matches.matched]
    parameters = tracks.parameters[matches.matched]
    pt = np.sin(parameters[:, 5]) / np.abs(parameters[:, 6])
    assert np.median(np.abs(pt / particles.pt[owner] - 1.0)) < 0.03
    assert np.array_equal(np.sign(parameters[:, 6]), particles.charge[owner])


def test_the_order_of_the_cells_and_earlier_events_change_nothing(chain):
    cells = small_event().cells
    tracks = chain.find_tracks(cells)
    shuffled = chosen(cells, np.random.default_rng(1).permutation(len(cells)))
    chain.find_tracks(chosen(cells, slice(0, 100)))
    assert same(chain.find_tracks(shuffled), tracks)
    assert same(Chain().find_tracks(cells), tracks)
    renumbered = cells.positions.copy()
    renumbered[:, 1] = 7
    assert same(chain.find_tracks(type(cells)(positions=renumbered, properties=cells.properties)), tracks)


def test_the_smallest_events_have_no_tracks(chain):
    apart = [(PIXELS + (n << 8), 10, 10) for n in range(3)]
    for rows in ([], [(PIXELS, 0, 0)], [(PIXELS, 0, 0), (PIXELS, 100, 0)], apart):
        tracks = chain.find_tracks(cells_of(*rows))
        check_shapes(tracks)
        assert len(tracks) == 0
    assert same(tracks, no_tracks())


def test_one_particle_is_one_track(chain):
    event = small_event(particles=1, seed=4)
    tracks = chain.find_tracks(event.cells)
    assert len(tracks) == 1
    assert tracks.lengths[0] > 5


def test_bad_cells_are_named_and_the_next_event_works(chain):
    cells = small_event().cells
    with pytest.raises(UnknownModule, match=f"geometry id {NOWHERE} in row 1"):
        chain.find_tracks(cells_of((PIXELS, 0, 0), (NOWHERE, 0, 0)))
    with pytest.raises(BadTensor, match="same cell"):
        chain.find_tracks(cells_of((PIXELS, 0, 0), (PIXELS, 0, 0)))
    assert len(chain.find_tracks(cells)) > 5


def test_tracks_without_a_good_fit_and_wild_covariances_are_left_out():
    """Tracks of 2, 3, 3 and 0 states; the third one diverged. One covariance is not a number, one is too large."""
    measured = Measurements(
        geometry_ids=np.arange(8) + PIXELS,
        local=np.zeros((8, 2)),
        variance=np.ones((8, 2)),
        cluster=np.arange(8),
    )
    smoothed = np.ones((8, 6))
    smoothed[5] = np.nan
    covariance = np.ones((8, 6, 6))
    covariance[2, 0, 1] = np.nan
    covariance[3, 4, 4] = 2 * MAX_COVARIANCE
    covariance[4, 1, 1] = -np.inf
    covariance[4, 5, 5] = np.inf
    tracks = _tracks(
        measured,
        index=np.arange(8),
        lengths=np.array([2, 3, 3, 0]),
        smoothed=smoothed,
        covariance=covariance,
        chi2=np.array([1.0, 2.0, 3.0, 4.0]),
    )
    assert len(tracks) == 1
    assert tracks.parameters[0].tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert (tracks.geometry_ids - PIXELS).tolist() == [2, 3, 4]
    assert [np.flatnonzero(row == 0.0).tolist() for row in tracks.covariances] == [[1], [24], [6]]
