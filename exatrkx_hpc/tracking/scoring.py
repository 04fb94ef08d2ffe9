"""How good labels are, measured against the truth.

A track is the set of hits that share a label; it is a candidate from `MIN_TRACK_HITS` hits on, since three
points make a helix. A track *matches* a particle when more than half of its hits are that particle's: the
matching ratio of 0.5 of Acts' TrackTruthMatcher. It *finds* the particle when it also holds more than half of
the particle's hits: the double majority of TrackML (Amrouche et al., arXiv:1904.06778).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Int64
from exatrkx_hpc.tracking.synthetic import TruthEvent

MIN_PT_GEV = 1.0
MIN_PARTICLE_HITS = 5
MIN_TRACK_HITS = 3


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts over one event or many; the rates are their quotients, and nan where there is nothing to divide by.

    `particles` have enough hits and momentum, `found` of them have a track by double majority. `tracks` are
    candidates; `matched` of them match a particle, `duplicates` of these match one that another track matches,
    too. `matched_hits` are the hits of the matched tracks, `right_hits` those that are the matched particle's.
    """

    particles: int = 0
    found: int = 0
    tracks: int = 0
    matched: int = 0
    duplicates: int = 0
    matched_hits: int = 0
    right_hits: int = 0

    @property
    def efficiency(self) -> float:
        """The share of particles that were found."""
        return _share(self.found, self.particles)

    @property
    def fake_rate(self) -> float:
        """The share of tracks that match no particle; a group of noise is one."""
        return _share(self.tracks - self.matched, self.tracks)

    @property
    def duplicate_rate(self) -> float:
        """The share of tracks that match a particle which another track matches already."""
        return _share(self.duplicates, self.tracks)

    @property
    def purity(self) -> float:
        """The share of right hits on matched tracks."""
        return _share(self.right_hits, self.matched_hits)


def score_event(
    labels: Int64,
    truth: TruthEvent,
    *,
    min_pt: float = MIN_PT_GEV,
    min_hits: int = MIN_PARTICLE_HITS,
    min_track_hits: int = MIN_TRACK_HITS,
) -> Score:
    """Return the counts of one event: `labels` `[N]` (any integers) against the truth of the same N hits.

    A particle counts when its pT is above `min_pt` GeV and it left at least `min_hits` hits. Raises ValueError
    when the numbers of labels and hits differ.
    """
    if labels.shape != truth.particle.shape:
        raise ValueError(f"{labels.size} labels for {truth.particle.size} hits; score them with their own event")
    if not labels.size:
        return Score()
    particle_size = np.bincount(truth.particle)
    _, label = np.unique(labels, return_inverse=True)
    size, owner, shared = _majority(label.reshape(-1), truth.particle)
    matched = (size >= min_track_hits) & (owner > 0) & (2 * shared > size)
    finds = matched & (2 * shared > particle_size[owner])
    wanted = _counted(truth, min_pt) & (particle_size >= min_hits)
    return Score(
        particles=int(wanted.sum()),
        found=int(wanted[np.unique(owner[finds])].sum()),
        tracks=int((size >= min_track_hits).sum()),
        matched=int(matched.sum()),
        duplicates=int(matched.sum() - len(np.unique(owner[matched]))),
        matched_hits=int(size[matched].sum()),
        right_hits=int(shared[matched].sum()),
    )


def total(scores: Iterable[Score]) -> Score:
    """Return the sum of the counts: rates over all events, each particle and each track weighing the same."""
    columns = np.array([astuple(score) for score in scores], dtype=np.int64).reshape(-1, 7)
    names = Score.__dataclass_fields__
    return Score(**dict(zip(names, columns.sum(axis=0).tolist(), strict=True)))


def _counted(truth: TruthEvent, min_pt: float) -> NDArray[np.bool_]:
    """Return for each particle number whether its pT is above `min_pt`; noise, number 0, is no particle."""
    pt = np.zeros(int(truth.particle.max()) + 1)
    pt[truth.particle] = truth.pt
    pt[0] = -np.inf
    return np.asarray(pt > min_pt)


def _majority(label: Int64, particle: Int64) -> tuple[Int64, Int64, Int64]:
    """Return for each track its size, the particle that owns most of its hits, and how many it owns."""
    n_particles = int(particle.max()) + 1
    pair, shared = np.unique(label * n_particles + particle, return_counts=True)
    track, owner = np.divmod(pair, n_particles)
    order = np.lexsort((shared, track))
    last = np.flatnonzero(np.append(np.diff(track[order]) > 0, True))
    best = order[last]
    return np.bincount(label), owner[best], shared[best]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
