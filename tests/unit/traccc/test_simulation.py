"""Simulated events of cells: the same for a seed, with a truth that fits the cells."""

from __future__ import annotations

import numpy as np
import pytest
from cell_events import small_event

from exatrkx_hpc.traccc.detector import generic_detector
from exatrkx_hpc.traccc.simulation.cells import simulate_cells
from exatrkx_hpc.traccc.simulation.particles import Beam, draw_particles

pytestmark = pytest.mark.slow


@pytest.fixture
def event():
    pytest.importorskip("acts")
    return small_event()


def test_cells_have_the_contracts_types_and_are_on_their_modules(event):
    cells, detector = event.cells, generic_detector()
    assert 300 < len(cells) < 900
    assert (cells.positions.dtype, cells.properties.dtype) == (np.int64, np.float32)
    assert (cells.positions.shape[1], cells.properties.shape[1]) == (4, 2)
    bins = detector.bins[detector.numbers(cells.geometry_ids)]
    assert ((cells.channels >= 0) & (cells.channels < bins)).all()
    assert (cells.values > 0).all()
    assert len(np.unique(cells.positions[:, [0, 2, 3]], axis=0)) == len(cells), "a cell is there once"
    # Light takes 0.1 ns to the first layer and less than 11 ns to the last one.
    assert 0.05 < cells.properties[:, 0].min() < cells.properties[:, 0].max() < 30.0


def test_the_same_seed_gives_the_same_event_whatever_came_before(event):
    small_event.cache_clear()
    small_event(particles=3, seed=8)
    again, other = small_event(), small_event(seed=6)
    assert np.array_equal(event.cells.positions, again.cells.positions)
    assert np.array_equal(event.cells.properties, again.cells.properties)
    assert np.array_equal(event.truth.passages.local, again.truth.passages.local)
    assert len(other.cells) != len(event.cells) or not np.array_equal(other.cells.positions, event.cells.positions)


def test_measurements_particles_and_passages_fit(event):
    cells, truth = event.cells, event.truth
    n_measurements = len(truth.geometry_ids)
    assert np.array_equal(np.unique(cells.measurement_ids), np.arange(n_measurements))
    assert np.array_equal(cells.geometry_ids, truth.geometry_ids[cells.measurement_ids])
    passages, particles = truth.passages, truth.particles
    assert set(passages.measurement) == set(range(n_measurements))
    assert (passages.particle >= 0).all() and passages.particle.max() < len(particles)
    assert np.abs(passages.local - truth.local[passages.measurement])[:, 0].max() < 1.0
    assert 10 < np.median(np.bincount(passages.particle)[particles.generated]) < 16
    hard = particles.pt[passages.particle] > 1.0
    p = np.abs(1.0 / passages.qop[hard]) * np.sin(passages.theta[hard])
    assert np.median(p / particles.pt[passages.particle[hard]]) == pytest.approx(1.0, abs=0.02)
    assert set(np.sign(passages.qop)) == {-1.0, 1.0}


def test_pile_up_has_vertices_of_its_own():
    rng = np.random.default_rng(2)
    start = draw_particles(rng, pile_up=20.0, beam=Beam(particles_per_vertex=5.0))
    assert 10 < start.vertex.max() < 35
    assert (np.bincount(start.vertex) > 0).all() and np.bincount(start.vertex)[0] == 30
    along = [start.position[start.vertex == n, 2] for n in range(start.vertex.max() + 1)]
    assert all(np.ptp(z) == 0.0 for z in along), "the particles of a vertex start together"
    assert 25.0 < np.std([z[0] for z in along]) < 80.0


def test_displaced_particles_start_away_from_their_vertex():
    rng = np.random.default_rng(2)
    start = draw_particles(rng, pile_up=0.0, beam=Beam(hard_particles=400, displaced_fraction=0.25))
    away = np.hypot(*(start.position - np.median(start.position, axis=0))[:, :2].T)
    assert 0.15 < start.displaced.mean() < 0.35
    assert away[start.displaced == 0].max() < 1e-9 < away[start.displaced == 1].min()
    assert away[start.displaced == 1].mean() == pytest.approx(5.0, rel=0.3)


def test_the_smallest_events_are_events():
    pytest.importorskip("acts")
    for particles in (0, 1):
        made = simulate_cells(np.random.default_rng(3), pile_up=0.0, beam=Beam(hard_particles=particles))
        assert made.cells.positions.shape == (len(made.cells), 4)
        assert made.truth.passages.local.shape[1] == made.truth.local.shape[1] == 2


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"pile_up": -1.0}, "pile_up -1,"),
        ({"pile_up": float("nan")}, "pile_up nan,"),
        ({"beam": Beam(hard_particles=-1)}, "hard_particles -1 or"),
        ({"beam": Beam(displaced_fraction=1.5)}, "displaced_fraction 1.5 is"),
    ],
)
def test_numbers_out_of_range_are_refused(bad, named):
    with pytest.raises(ValueError, match=f"{named}.*out of range.*displaced_fraction of 0 to 1"):
        simulate_cells(np.random.default_rng(0), **bad)


def test_acts_prints_nothing(capfd):
    pytest.importorskip("acts")
    small_event.cache_clear()
    small_event(particles=2)
    assert capfd.readouterr() == ("", "")
