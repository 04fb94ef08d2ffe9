"""Match fitted tracks to particles, as the basis of every score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exatrkx_hpc.traccc.cells import Float64, Int64
from exatrkx_hpc.traccc.simulation.truth import Truth
from exatrkx_hpc.traccc.tracks import Tracks
from exatrkx_hpc.tracking.scoring.matching import Bools, duplicates

#: A measurement on a track is the simulation's own if it is on the same module and within this distance (mm): the
#: positions differ by the rounding of float32.
TOLERANCE = 1e-3
#: A distance between two modules in the search, larger than any module (mm).
_APART = 1e4
_SIDES: tuple[tuple[float, Literal["left", "right"]], ...] = ((-TOLERANCE, "left"), (TOLERANCE, "right"))


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The tracks of an event and its particles, T and P of them.

    `measurement` `[S]` is the true measurement of each measurement on a track, -1 for none. For each track: the
    particle with most of its measurements (`owner`; -1 for none), the number of those (`shared`), whether it is
    `matched` to its owner, and whether it is a `duplicate`: not the best of the tracks matched to the same particle.
    For each particle: its number of measurements (`hits`), and whether it is `found`.
    """

    measurement: Int64
    owner: Int64
    shared: Int64
    matched: Bools
    duplicate: Bools
    hits: Int64
    found: Bools


def match_tracks(tracks: Tracks, truth: Truth) -> Matches:
    """Match the tracks of an event to its particles.

    A track is matched to the particle that owns more than half of its measurements. It finds the particle if it also
    holds more than half of the particle's measurements: the double majority of TrackML. A measurement of several
    particles counts for each.
    """
    measurement = _measurements(tracks, truth)
    passages, n_particles = truth.passages, len(truth.particles)
    pairs = np.unique(np.stack([passages.particle, passages.measurement]), axis=1)
    hits = np.bincount(pairs[0], minlength=n_particles)
    owner, shared = _majority(tracks, measurement, pairs)
    matched = (owner >= 0) & (2 * shared > tracks.lengths)
    found = np.zeros(n_particles, dtype=np.bool_)
    finds = matched & (2 * shared > hits[owner]) if n_particles else matched
    found[owner[finds]] = True
    return Matches(
        measurement=measurement,
        owner=owner,
        shared=shared,
        matched=matched,
        duplicate=duplicates(owner, shared, matched),
        hits=hits,
        found=found,
    )


def _measurements(tracks: Tracks, truth: Truth) -> Int64:
    """Return the number of the true measurement of each measurement on a track, or -1."""
    if not len(truth.geometry_ids) or not len(tracks.geometry_ids):
        return np.full(len(tracks.geometry_ids), -1, dtype=np.int64)
    modules = np.unique(truth.geometry_ids)
    number = np.searchsorted(modules, tracks.geometry_ids)
    known = modules[np.minimum(number, len(modules) - 1)] == tracks.geometry_ids
    true = truth.local + np.outer(np.searchsorted(modules, truth.geometry_ids), (_APART, 0.0))
    own = tracks.measurements[:, :2] + np.outer(number, (_APART, 0.0))
    return np.where(known, _nearest(own, true), -1)


def _nearest(own: Float64, true: Float64) -> Int64:
    """Return the row in `true` `[M, 2]` of the nearest place to each of `own` `[S, 2]` within TOLERANCE, or -1."""
    order = np.argsort(true[:, 0], kind="stable")
    ends = [np.searchsorted(true[order, 0], own[:, 0] + way, side) for way, side in _SIDES]
    row, place = _pairs(ends[0], ends[1] - ends[0])
    candidate = order[place]
    distance = np.hypot(*(own[row] - true[candidate]).T)
    best = np.lexsort((distance, row))
    best = best[distance[best] < TOLERANCE]
    rows, first = np.unique(row[best], return_index=True)
    nearest = np.full(len(own), -1, dtype=np.int64)
    nearest[rows] = candidate[best][first]
    return nearest


def _pairs(low: Int64, count: Int64) -> tuple[Int64, Int64]:
    """Return the rows and the places of the ranges of `count` places from `low` on, one range a row."""
    row = np.repeat(np.arange(len(low)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return row, low[row] + within


def _majority(tracks: Tracks, measurement: Int64, pairs: Int64) -> tuple[Int64, Int64]:
    """Return the particle with most of each track's measurements, the first of several, and their number."""
    owner, shared = np.full(len(tracks), -1, dtype=np.int64), np.zeros(len(tracks), dtype=np.int64)
    pairs = pairs[:, np.argsort(pairs[1], kind="stable")]
    low, high = (np.searchsorted(pairs[1], measurement, side) for side in ("left", "right"))
    row, place = _pairs(low, high - low)
    track, particle = tracks.owner[row], pairs[0][place]
    votes, number = np.unique(np.stack([track, particle]), axis=1, return_counts=True)
    best = np.lexsort((votes[1], -number, votes[0]))
    winners, first = np.unique(votes[0][best], return_index=True)
    owner[winners], shared[winners] = votes[1][best][first], number[best][first]
    return owner, shared
