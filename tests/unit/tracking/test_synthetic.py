"""Synthetic events: the physics that was promised, no leak of the truth, and text that loses nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exatrkx_hpc.tracking.simulation.detector import DEFAULT_GEOMETRY
from exatrkx_hpc.tracking.simulation.synthetic import (
    TruthEvent,
    generate_event,
    hits_text,
    parse_event,
    read_event,
    truth_text,
    write_events,
)

IDEAL = replace(
    DEFAULT_GEOMETRY,
    beam_spread_r=0.0,
    beam_spread_z=0.0,
    displaced_fraction=0.0,
    resolution_pixel=(0.0, 0.0),
    resolution_strip=(0.0, 0.0),
    scattering=0.0,
    efficiency=1.0,
)


def event(seed: int = 0, **options) -> TruthEvent:
    return generate_event(np.random.default_rng(seed), **options)


def same(a: TruthEvent, b: TruthEvent) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("hits", "particle", "pt", "eta"))


def test_a_seed_names_an_event():
    assert same(event(1), event(1))
    assert not same(event(1), event(2))


def test_the_default_event_has_the_promised_size_and_types():
    for seed in range(10):
        made = event(seed)
        n = len(made.particle)
        assert 1500 <= n <= 2500
        assert made.hits.shape == (n, 3)
        assert (made.hits.dtype, made.particle.dtype) == (np.float32, np.int64)
        assert made.pt.shape == made.eta.shape == (n,)
        assert made.pt.dtype == made.eta.dtype == np.float32
        assert np.isfinite(made.hits).all()
        assert np.abs(made.hits[:, 1]).max() <= 1.0


def test_the_order_of_the_hits_tells_nothing():
    made = event(3)
    neighbours = made.particle[1:] == made.particle[:-1]
    # By chance about one pair in 180; in the order of generation it would be nine in ten.
    assert neighbours[made.particle[1:] > 0].mean() < 0.03
    assert abs(np.corrcoef(np.arange(len(made.hits)), made.hits[:, 0])[0, 1]) < 0.1


def test_every_hit_lies_on_a_layer_or_a_disc():
    made = event(4)
    r, z = made.hits[:, 0] * 3000.0, made.hits[:, 2] * 400.0
    on_layer = np.min(np.abs(r[:, None] - [radius for radius, _ in DEFAULT_GEOMETRY.barrel]), axis=1) < 0.01
    on_disc = np.min(np.abs(np.abs(z)[:, None] - [d[0] for d in DEFAULT_GEOMETRY.discs]), axis=1) < 0.01
    assert (on_layer | on_disc).all()
    assert on_layer.any()
    assert on_disc.any()


def test_without_any_disturbance_the_hits_of_a_particle_lie_on_its_helix():
    made = event(5, noise_fraction=0.0, geometry=IDEAL)
    checked = 0
    for particle in np.unique(made.particle):
        hits = made.hits[made.particle == particle].astype(float)
        pt = float(made.pt[made.particle == particle][0])
        eta = float(made.eta[made.particle == particle][0])
        hits = hits[np.argsort(hits[:, 0])]
        r, phi, z = hits[:, 0] * 3000.0, np.unwrap(hits[:, 1] * np.pi), hits[:, 2] * 400.0
        radius = pt * 1000.0 / (0.3 * 2.0)
        half_turn = np.arcsin(r / (2 * radius))
        assert np.abs(np.abs(phi - phi[0]) - (half_turn - half_turn[0])).max() < 1e-5
        assert z == pytest.approx(2 * radius * half_turn * np.sinh(eta), abs=0.05)
        checked += 1
    assert checked == 180


def test_scattering_bends_soft_tracks_more_than_hard_ones():
    geometry = replace(IDEAL, scattering=DEFAULT_GEOMETRY.scattering)
    deviation = {}
    for name, low, high in (("soft", 0.0, 0.7), ("hard", 2.0, 99.0)):
        parts = []
        for seed in range(5):
            bent, straight = (
                event(seed, noise_fraction=0.0, geometry=geometry),
                event(seed, noise_fraction=0.0, geometry=IDEAL),
            )
            outer = (bent.pt > low) & (bent.pt < high) & (np.abs(bent.hits[:, 0] - 1 / 3) < 1e-4)
            parts.append((bent.hits - straight.hits)[outer, 1])
        deviation[name] = np.concatenate(parts).std()
    assert deviation["soft"] > 3 * deviation["hard"] > 0


def test_the_momentum_spectrum_falls_and_both_charges_occur():
    pt, bend = [], []
    for seed in range(10):
        made = event(seed, noise_fraction=0.0, geometry=IDEAL)
        pt.append(made.pt[np.unique(made.particle, return_index=True)[1]])
        inner = np.abs(made.hits[:, 0] - 32 / 3000) < 1e-5
        outer = np.abs(made.hits[:, 0] - 260 / 3000) < 1e-5
        for particle in np.intersect1d(made.particle[inner], made.particle[outer]):
            mine = made.particle == particle
            bend.append(made.hits[mine & outer, 1][0] - made.hits[mine & inner, 1][0])
    counts, _ = np.histogram(np.concatenate(pt), bins=[0.4, 0.8, 1.2, 1.6, 2.4])
    assert (np.diff(counts[:3]) < 0).all()
    assert np.concatenate(pt).min() >= 0.4
    assert 0.3 < np.mean(np.array(bend) > 0) < 0.7


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_the_share_of_noise_is_the_one_asked_for(share):
    made = event(6, noise_fraction=share)
    noise = made.particle == 0
    assert noise.mean() == pytest.approx(share, abs=0.03)
    assert not made.pt[noise].any()
    assert not made.eta[noise].any()
    assert (made.pt[~noise] > 0).all()


def test_an_event_without_tracks_is_an_event():
    made = event(7, n_tracks=0, noise_fraction=0.0)
    assert made.hits.shape == (0, 3)
    assert same(made, parse_event(hits_text(made), truth_text(made)))


@pytest.mark.parametrize("bad", [{"n_tracks": -1}, {"noise_fraction": 1.0}, {"noise_fraction": -0.1}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        event(0, **bad)


def test_text_and_back_loses_nothing():
    made = event(8)
    hits, truth = hits_text(made), truth_text(made)
    assert same(made, parse_event(hits, truth))
    assert len(hits.splitlines()) == len(made.hits)
    assert all(len([float(x) for x in line.split(",")]) == 3 for line in hits.splitlines())
    assert truth.splitlines()[0] == "particle,pt,eta"


@pytest.mark.parametrize(
    ("hits", "truth", "message"),
    [
        ("1,2,3\n", "1,2,3\n", "header"),
        ("1,2,3\n", "particle,pt,eta\n", "1 hits but 0 rows"),
        ("1,2\n", "particle,pt,eta\n1,2,3\n", "2 columns"),
        ("a,b,c\n", "particle,pt,eta\n1,2,3\n", "could not convert"),
        ("1,2,3\n", "particle,pt,eta\n1,2\n", "line 2 of the truth has 2 columns"),
        ("1,2,3\n", "particle,pt,eta\n1.5,2,3\n", "line 2 of the truth: the particle '1.5' is not an integer"),
        ("1,2,3\n", "particle,pt,eta\nnan,2,3\n", "line 2 .* 'nan' is not an integer; noise is particle 0"),
        ("1,2,3\n", "particle,pt,eta\n9007199254740992.0,2,3\n", "line 2 .* is written as a float, which is not exact"),
        ("1,2,3\n", "particle,pt,eta\n9.1e+15,2,3\n", "line 2 .* is written as a float, which is not exact"),
        ("1,2,3\n", "particle,pt,eta\n0.99999999999999999999,2,3\n", "line 2 .* is not an integer"),
        ("1,2,3\n", "particle,pt,eta\n1_0,2,3\n", "line 2 .* holds more than numbers"),
        ("1,2,3\n", "particle,pt,eta\n\uff11,2,3\n", "line 2 .* holds more than numbers"),
        ("1,2,3\n", "particle,pt,eta\n,2,3\n", "line 2 of the truth: could not convert"),
        ("1,2,3\n", "particle,pt,eta\n1,x,3\n", "line 2 of the truth: could not convert"),
        ("1,2,3\n", f"particle,pt,eta\n{2**64},2,3\n", "line 2 .* does not fit into 64 bits"),
        ("1,2,3\n", f"particle,pt,eta\n{'9' * 5000},2,3\n", "line 2 of the truth: "),
        ("1,2,3\n1,2,3\n", f"particle,pt,eta\n-1,2,3\n{2**63},2,3\n", "line 3 .* into 64 bits, beside negative ones"),
    ],
)
def test_text_that_is_no_event_is_refused(hits, truth, message):
    with pytest.raises(ValueError, match=message):
        parse_event(hits, truth)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ((2**53, 2**53 + 1, 0), np.int64),
        ((-1, 2**63 - 1, -(2**63)), np.int64),
        ((2**63, 2**64 - 1, 0), np.uint64),
    ],
)
def test_numbers_of_particles_survive_their_text(names, kind):
    made = TruthEvent(
        hits=np.ones((3, 3), dtype=np.float32),
        particle=np.array(names, dtype=kind),
        pt=np.ones(3, dtype=np.float32),
        eta=np.ones(3, dtype=np.float32),
    )
    read = parse_event(hits_text(made), truth_text(made))
    assert read.particle.dtype == kind and read.particle.tolist() == list(names)


def test_whole_numbers_as_floats_and_harmless_signs_are_read():
    text = "\ufeffparticle,pt,eta\r\n7.0, 1e0 ,2\r\n1e3,1,2\r\n\r\n"
    assert parse_event("1,2,3\n1,2,3\n", text).particle.tolist() == [7, 1000]


def test_events_are_written_with_their_truth_beside_them(tmp_path):
    calls = []
    write_events(tmp_path / "new", events=3, tracks=5, seed=9, on_progress=lambda *call: calls.append(call))
    names = [f"evt_{n:06d}.csv" for n in range(3)]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [*names, "truth"]
    assert sorted(p.name for p in (tmp_path / "new" / "truth").iterdir()) == names
    assert calls == [("events", n, 3) for n in (1, 2, 3)]
    read = [read_event(tmp_path / "new" / name) for name in names]
    assert all(made.particle.max() <= 5 for made in read)
    assert not same(read[0], read[1])


def test_more_events_leave_the_first_ones_as_they_were(tmp_path):
    write_events(tmp_path / "few", events=2, tracks=5, seed=9)
    write_events(tmp_path / "many", events=4, tracks=5, seed=9)
    for path in (tmp_path / "few").rglob("*.csv"):
        assert path.read_text() == (tmp_path / "many" / path.relative_to(tmp_path / "few")).read_text()


def test_a_write_that_fails_leaves_no_part_behind(tmp_path):
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "evt_000000.csv").mkdir()
    with pytest.raises(OSError):
        write_events(tmp_path, events=1, tracks=2)
    assert not list(tmp_path.rglob("*.part"))
