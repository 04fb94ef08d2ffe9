"""What is taught with: small and dense events in the shares asked for, and wedges that lose no hit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from exatrkx_hpc.tracking.constants import DEFAULT_TRAINING
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.tracking.training.lessons import Lessons, cut_wedges, turned

SMALL = replace(DEFAULT_TRAINING, small_events=8, tracks=(5, 8), dense_events=3, dense_tracks=(40, 60), dense_parts=4)


class Recorder:
    """A source of events that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rng, *, n_tracks):
        self.asked.append(n_tracks)
        return generate_event(rng, n_tracks=n_tracks)


def stock(**changes):
    source, calls = Recorder(), []
    settings = replace(SMALL, **changes)
    lessons = Lessons(
        np.random.default_rng(0), settings=settings, source=source, report=lambda *call: calls.append(call)
    )
    return lessons, source.asked, calls


def test_wedges_hold_every_hit_once_and_are_narrow():
    event = generate_event(np.random.default_rng(1), n_tracks=50)
    wedges = cut_wedges(event, 4, start=0.3)
    joined = np.concatenate([wedge.hits for wedge in wedges])
    assert len(joined) == len(event.hits)
    assert np.array_equal(np.unique(joined, axis=0), np.unique(event.hits, axis=0))
    for number, wedge in enumerate(wedges):
        into = np.mod(wedge.hits[:, 1] - 0.3, 2.0)
        assert into.min() >= 0.5 * number
        assert into.max() <= 0.5 * (number + 1)
        assert len(wedge.particle) == len(wedge.pt) == len(wedge.eta) == len(wedge.hits)


def test_a_turn_keeps_the_distances_and_a_mirror_changes_the_sides():
    event = generate_event(np.random.default_rng(1), n_tracks=50)
    same = turned(event, by=0.0, mirror_phi=1.0, mirror_z=1.0)
    assert np.allclose(same.hits, event.hits, atol=1e-6)
    other = turned(event, by=0.7, mirror_phi=-1.0, mirror_z=-1.0)
    assert np.array_equal(other.hits[:, 0], event.hits[:, 0])
    assert np.array_equal(other.hits[:, 2], -event.hits[:, 2])
    assert np.array_equal(other.eta, -event.eta)
    assert np.abs(other.hits[:, 1]).max() <= 1.0
    assert np.allclose(np.cos(np.pi * (other.hits[:, 1] + event.hits[:, 1])), np.cos(0.7 * np.pi), atol=1e-5)


def test_the_stock_is_made_once_and_reported():
    lessons, asked, calls = stock(helix_share=0.0)
    assert calls == [(n, 11) for n in range(1, 12)]
    assert [5 <= n <= 8 for n in asked] == [True] * 8 + [False] * 3
    assert all(40 <= n <= 60 for n in asked[8:])
    for _ in range(30):
        lessons.event()
    assert len(asked) == 11


def test_a_share_of_the_small_events_are_helices_whatever_the_source():
    _, asked, _ = stock(small_events=200, helix_share=0.25, dense_events=1)
    assert 130 < len(asked) < 170


def test_a_share_of_the_lessons_is_dense_and_no_two_are_equal():
    lessons, _, _ = stock(dense_share=0.5, tracks=(1, 2))
    made = [lessons.event() for _ in range(100)]
    assert 30 < sum(len(event.hits) > 40 for event in made) < 70
    assert len({event.hits.tobytes() for event in made}) == 100


def test_the_state_of_the_generator_names_the_lessons():
    first, again = stock()[0], stock()[0]
    for _ in range(12):
        assert np.array_equal(first.event().hits, again.event().hits)
