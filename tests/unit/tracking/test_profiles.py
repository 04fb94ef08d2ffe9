"""Rates in bins: who is counted where, and how sure the rate is."""

from __future__ import annotations

import numpy as np
import pytest

from exatrkx_hpc.tracking.scoring.matching import match_event, particle_values
from exatrkx_hpc.tracking.scoring.profiles import Profile, profile_event, total_profiles, wilson_interval
from exatrkx_hpc.tracking.scoring.score import score_event
from exatrkx_hpc.tracking.simulation.kinematics import track_parameters
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent, generate_event


@pytest.fixture(scope="module")
def event() -> TruthEvent:
    return generate_event(np.random.default_rng(11), n_tracks=300)


def profiles(labels: np.ndarray, event: TruthEvent) -> dict[tuple[str, str], Profile]:
    matches = match_event(labels, event, min_track_hits=3)
    return {(one.rate, one.variable): one for one in profile_event(matches, event)}


def test_hits_tell_momentum_and_direction_of_their_track(event):
    matches = match_event(event.particle, event, min_track_hits=6)
    pt, eta = track_parameters(event.hits, matches.track, n_tracks=len(matches.size))
    good, owner = matches.matched, matches.owner[matches.matched]
    assert good.sum() > 200
    ratio = pt[good] / particle_values(matches, event.pt)[owner]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01) and np.percentile(np.abs(ratio - 1.0), 90) < 0.05
    shift = eta[good] - particle_values(matches, event.eta)[owner]
    assert abs(np.median(shift)) < 0.01 and np.percentile(np.abs(shift), 90) < 0.06


def test_a_straight_line_and_a_lone_hit_have_parameters(event):
    hits = np.array([[0.01, 0.2, 0.1], [0.02, 0.2, 0.2], [0.03, 0.2, 0.3], [0.1, 0.5, 0.0]], dtype=np.float32)
    pt, eta = track_parameters(hits, np.array([0, 0, 0, 1]), n_tracks=2)
    assert pt[0] > 1e3 and np.isinf(pt[1])
    assert eta == pytest.approx([np.arcsinh(40 / 30), 0.0], abs=1e-5)


def test_the_bins_add_up_to_the_score(event):
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(len(event.particle)) < 0.1, rng.integers(0, 40, len(event.particle)), event.particle)
    score, bins = score_event(labels, event), profiles(labels, event)
    assert 0 < score.found < score.particles and score.duplicates + score.tracks - score.matched > 0
    eta = {rate: (one.part.sum(), one.whole.sum()) for (rate, variable), one in bins.items() if variable == "eta"}
    assert eta == {
        "efficiency": (score.found, score.particles),
        "purity": (score.right_hits, score.matched_hits),
        "fake_rate": (score.tracks - score.matched, score.tracks),
        "duplicate_rate": (score.duplicates, score.tracks),
    }
    hard = bins["efficiency", "pt"].edges[:-1] >= 1.0
    of_pt = bins["efficiency", "pt"]
    assert (of_pt.part[hard].sum(), of_pt.whole[hard].sum()) == (score.found, score.particles)
    assert of_pt.whole[~hard].sum() > 0, "below the cut there is something to see, too"


def test_what_is_beyond_the_edges_is_in_the_outer_bins():
    event = TruthEvent(
        hits=np.full((12, 3), 0.1, dtype=np.float32),
        particle=np.repeat([1, 2], 6),
        pt=np.repeat(np.array([500.0, 0.1], dtype=np.float32), 6),
        eta=np.repeat(np.array([-9.0, 9.0], dtype=np.float32), 6),
    )
    bins = profiles(event.particle, event)
    assert bins["efficiency", "pt"].whole.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert bins["efficiency", "eta"].whole[0] == 1 and bins["efficiency", "eta"].whole.sum() == 1


def test_the_interval_is_wilsons():
    low, high = wilson_interval(np.array([8, 0, 10, 0]), np.array([10, 10, 10, 0]), z=1.96)
    # The second row of a table in R. G. Newcombe, Stat. Med. 17 (1998) 857, is of this kind: 0 of n up to z^2/(n+z^2).
    assert low[:3] == pytest.approx([0.4902, 0.0, 0.7225], abs=1e-4)
    assert high[:3] == pytest.approx([0.9433, 0.2775, 1.0], abs=1e-4)
    assert np.isnan(low[3]) and np.isnan(high[3])


def test_an_empty_bin_is_nan_and_events_add_up(event):
    one = tuple(profiles(event.particle, event).values())
    twice = total_profiles([one, one])
    for single, double in zip(one, twice, strict=True):
        assert (2 * single.whole).tolist() == double.whole.tolist()
        np.testing.assert_array_equal(np.isnan(double.share), double.whole == 0)
    assert total_profiles([]) == ()


def test_an_event_without_hits_has_profiles_without_counts():
    empty = generate_event(np.random.default_rng(0), n_tracks=0, noise_fraction=0.0)
    none = TruthEvent(hits=empty.hits[:0], particle=empty.particle[:0], pt=empty.pt[:0], eta=empty.eta[:0])
    assert all(one.whole.sum() == 0 for one in profiles(none.particle, none).values())


def test_particles_may_be_called_by_any_number(event):
    names = np.where(event.particle == 0, 0, event.particle * 10**15 - 7)
    named = TruthEvent(hits=event.hits, particle=names, pt=event.pt, eta=event.eta)
    assert score_event(event.particle, named) == score_event(event.particle, event)
