"""Match tracks to particles, as the basis of every score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Int64, Names
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent

Bools = NDArray[np.bool_]

NO_TRACK = -1
"""The label of a hit without a track, as the public C++ backends give it; in an unsigned column it is 2^64 - 1."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Tracks (numbered from 0) and particles (numbered from 1; 0 is noise) of one event.

    `track` `[N]` and `particle` `[N]` are the numbers of each hit. For each of T tracks: `size`; the particle with most
    of its hits (`owner`) and the number of those hits (`shared`); whether it is a candidate (`candidate`), is `matched`
    to its owner, and is a `duplicate`: not the best of the tracks matched to its owner. For each of P + 1 particles:
    the number of its hits (`particle_size`), and whether it is `found`.
    """

    track: Int64
    particle: Int64
    size: Int64
    owner: Int64
    shared: Int64
    candidate: Bools
    matched: Bools
    duplicate: Bools
    particle_size: Int64
    found: Bools


def match_event(labels: Names, truth: TruthEvent, *, min_track_hits: int) -> Matches:
    """Match the tracks of `labels` `[N]` (any integers) to the particles of the same N hits.

    Hits with the label `NO_TRACK` have no track, and never form a candidate. A track of `min_track_hits` hits or more
    is a candidate. A candidate is matched to a particle that owns more than half of its hits. It finds the particle if
    it also holds more than half of the particle's hits. Raises ValueError when the numbers of labels and hits differ.
    """
    if labels.shape != truth.particle.shape:
        raise ValueError(f"{labels.size} labels for {truth.particle.size} hits; score them with their own event")
    names, track = np.unique(labels, return_inverse=True)
    particle = _numbered(truth.particle)
    particle_size = np.bincount(particle, minlength=1)
    size, owner, shared = _majority(track.reshape(-1), particle)
    candidate = (size >= min_track_hits) & (names.astype(np.int64) != NO_TRACK)
    matched = candidate & (owner > 0) & (2 * shared > size)
    finds = matched & (2 * shared > particle_size[owner])
    found = np.zeros(len(particle_size), dtype=np.bool_)
    found[owner[finds]] = True
    return Matches(
        track=track.reshape(-1),
        particle=particle,
        size=size,
        owner=owner,
        shared=shared,
        candidate=candidate,
        matched=matched,
        duplicate=duplicates(owner, shared, matched),
        particle_size=particle_size,
        found=found,
    )


def particle_values(matches: Matches, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the value of each particle, `[P + 1]`, which all its hits have in `values` `[N]`; nan for noise."""
    out = np.full(len(matches.particle_size), np.nan)
    out[matches.particle] = values
    out[0] = np.nan
    return out


def duplicates(owner: Int64, shared: Int64, matched: Bools) -> Bools:
    """Return for each of T tracks whether it is matched, but is not the best of the tracks matched to its particle.

    `owner` `[T]` is the particle with most of a track's hits, `shared` `[T]` the number of those hits. Of two tracks
    with as many, the first is the best.
    """
    order = np.flatnonzero(matched)
    order = order[np.lexsort((-shared[order], owner[order]))]
    again = np.zeros(len(owner), dtype=np.bool_)
    again[order[1:]] = owner[order[1:]] == owner[order[:-1]]
    return again


def _numbered(particle: Names) -> Int64:
    """Return the particles renumbered from 1, with 0 for noise."""
    numbers = np.zeros(len(particle), dtype=np.int64)
    real = particle != 0
    numbers[real] = np.unique(particle[real], return_inverse=True)[1].reshape(-1) + 1
    return numbers


def _majority(track: Int64, particle: Int64) -> tuple[Int64, Int64, Int64]:
    """Return for each track its size, the particle that owns most of its hits, and how many it owns."""
    if not track.size:
        none = np.empty(0, dtype=np.int64)
        return none, none, none
    n_particles = int(particle.max()) + 1
    pair, shared = np.unique(track * n_particles + particle, return_counts=True)
    number, owner = np.divmod(pair, n_particles)
    order = np.lexsort((shared, number))
    best = order[np.flatnonzero(np.append(np.diff(number[order]) > 0, True))]
    return np.bincount(track), owner[best], shared[best]
