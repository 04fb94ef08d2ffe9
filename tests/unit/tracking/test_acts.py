"""Events of ACTS: simulated particles with their truth, silent, the same for a seed; and what happens without it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from command import complaint, exatrkx_hpc

from exatrkx_hpc.base.process import run
from exatrkx_hpc.tracking.scoring.graphs import true_edges
from exatrkx_hpc.tracking.simulation.acts import event_source, is_installed, simulate_event
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent, generate_event, read_event

pytestmark = pytest.mark.slow


needs_acts = pytest.mark.skipif(not is_installed(), reason="pyacts is not installed")
#: The radii of the GenericDetector's barrel layers in mm; a layer's modules are staggered by some millimetres.
LAYERS = np.array([32.0, 72.0, 116.0, 172.0, 260.0, 360.0, 500.0, 660.0, 820.0, 1020.0])


@pytest.fixture(scope="module")
def event() -> TruthEvent:
    return simulate_event(np.random.default_rng(1), n_tracks=192)


def first_hits(event: TruthEvent) -> np.ndarray:
    """Return the number of one hit of each particle."""
    particles, first = np.unique(event.particle, return_index=True)
    return first[particles > 0]


@needs_acts
def test_an_event_has_the_promised_size_and_types(event):
    n = len(event.particle)
    assert 2200 < n < 2800
    assert event.hits.shape == (n, 3)
    assert (event.hits.dtype, event.particle.dtype) == (np.float32, np.int64)
    assert event.pt.dtype == event.eta.dtype == np.float32
    assert np.isfinite(event.hits).all()
    assert np.abs(event.hits[:, 1]).max() <= 1.0


@needs_acts
def test_the_same_seed_gives_the_same_event_whatever_came_before(event):
    simulate_event(np.random.default_rng(2), n_tracks=3)
    again = simulate_event(np.random.default_rng(1), n_tracks=192)
    other = simulate_event(np.random.default_rng(2), n_tracks=192)
    assert all(np.array_equal(getattr(event, name), getattr(again, name)) for name in ("hits", "particle", "pt", "eta"))
    assert not np.array_equal(event.hits[:100], other.hits[:100])


@needs_acts
def test_the_hits_of_a_particle_lie_on_its_way_through_the_detector(event):
    """A straight line in r and z from the beam, and a turn in phi that its momentum allows."""
    hits, edges = event.hits.astype(float), true_edges(event)
    hard = event.pt[edges[0]] > 1.0
    inner, outer = hits[edges[0, hard]], hits[edges[1, hard]]
    pt, eta = event.pt[edges[0, hard]], event.eta[edges[0, hard]]
    dr = (outer[:, 0] - inner[:, 0]) * 3000.0
    far = dr > 20.0
    turn = np.abs(np.remainder(outer[:, 1] - inner[:, 1] + 1.0, 2.0) - 1.0) * np.pi
    radius = pt * 1000.0 / (0.3 * 2.0)
    assert (turn[far] < 0.03 + dr[far] / radius[far]).mean() > 0.99
    slope = (outer[far, 2] - inner[far, 2]) * 400.0 / dr[far]
    assert np.abs(np.arcsinh(slope) - eta[far]).mean() < 0.1
    assert 9 < np.bincount(event.particle)[event.particle[edges[0, hard]]].mean() < 15


@needs_acts
def test_barrel_hits_lie_on_the_layers_of_the_detector(event):
    r, z = event.hits[:, 0] * 3000.0, np.abs(event.hits[:, 2]) * 400.0
    central = z < 480.0
    assert np.min(np.abs(r[central, None] - LAYERS), axis=1).max() < 8.0
    assert (z > 600.0).any()


@needs_acts
def test_noise_has_its_share_and_no_momentum(event):
    noise = event.particle == 0
    assert 0.07 < noise.mean() < 0.13
    assert not event.pt[noise].any()
    assert not (simulate_event(np.random.default_rng(1), n_tracks=20, noise_fraction=0.0).particle == 0).any()


@needs_acts
def test_momenta_fall_from_the_lowest_one_and_both_charges_occur(event):
    pt = event.pt[first_hits(event)]
    assert (pt > 0.4).mean() > 0.9
    assert (pt < 1.0).sum() > (pt > 1.0).sum() > 40
    assert abs(np.corrcoef(np.arange(len(event.hits)), event.hits[:, 0])[0, 1]) < 0.1


@needs_acts
@pytest.mark.parametrize("n_tracks", [0, 1])
def test_the_smallest_events_are_events(n_tracks):
    made = simulate_event(np.random.default_rng(3), n_tracks=n_tracks)
    assert made.hits.shape == (len(made.particle), 3)
    assert made.hits.dtype == np.float32


@needs_acts
@pytest.mark.parametrize("bad", [{"n_tracks": -1}, {"noise_fraction": 1.0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        simulate_event(np.random.default_rng(0), **bad)


@needs_acts
def test_the_command_writes_them_and_prints_nothing_of_acts(tmp_path):
    done = exatrkx_hpc(
        *("events", "generate", "--source", "acts", "--out", "events", "--events", 2, "--tracks", 10), cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 events in events, their truth in events/truth\n"
    made = simulate_event(np.random.default_rng([0, 1]), n_tracks=10)
    assert np.array_equal(read_event(tmp_path / "events" / "evt_000001.csv").hits, made.hits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events"]


def test_without_acts_the_helices_take_its_place_and_asking_for_it_is_an_error(monkeypatch):
    assert event_source("helices") is generate_event
    monkeypatch.setitem(sys.modules, "acts", None)
    assert event_source("auto") is generate_event
    with pytest.raises(ImportError, match="acts"):
        event_source("acts")


def test_the_command_says_what_to_install(tmp_path):
    hidden = "import sys; sys.modules['acts'] = None; from exatrkx_hpc.cli import main; main()"
    done = run(
        [sys.executable, "-c", hidden, "events", "generate", "--source", "acts", "--out", "events"], cwd=tmp_path
    )
    assert "pip install 'exatrkx-hpc[acts]'" in complaint(done, 3)
    assert not (tmp_path / "events").exists()
