"""Quality of labels, measured against the truth.

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

from exatrkx_hpc.tracking.constants import Names
from exatrkx_hpc.tracking.scoring.matching import Matches, match_event, particle_values
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent

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
    labels: Names,
    truth: TruthEvent,
    *,
    min_pt: float = MIN_PT_GEV,
    min_hits: int = MIN_PARTICLE_HITS,
    min_track_hits: int = MIN_TRACK_HITS,
) -> Score:
    """Return the counts of one event: `labels` `[N]` (any integers) against the truth of the same N hits.

    The label -1 means no track. A particle counts when its pT is above `min_pt` GeV and it left at least `min_hits`
    hits. Raises ValueError when the numbers of labels and hits differ.
    """
    matches = match_event(labels, truth, min_track_hits=min_track_hits)
    return score_matches(matches, truth, min_pt=min_pt, min_hits=min_hits)


def score_matches(
    matches: Matches, truth: TruthEvent, *, min_pt: float = MIN_PT_GEV, min_hits: int = MIN_PARTICLE_HITS
) -> Score:
    """Return the counts of one event whose tracks and particles have been matched already; else as `score_event`."""
    wanted = counted_particles(matches, truth, min_pt=min_pt, min_hits=min_hits)
    return Score(
        particles=int(wanted.sum()),
        found=int((wanted & matches.found).sum()),
        tracks=int(matches.candidate.sum()),
        matched=int(matches.matched.sum()),
        duplicates=int(matches.duplicate.sum()),
        matched_hits=int(matches.size[matches.matched].sum()),
        right_hits=int(matches.shared[matches.matched].sum()),
    )


def counted_particles(
    matches: Matches, truth: TruthEvent, *, min_pt: float = MIN_PT_GEV, min_hits: int = MIN_PARTICLE_HITS
) -> NDArray[np.bool_]:
    """Return for each particle number of `matches`, `[P + 1]`, whether it counts; noise, number 0, never does."""
    with np.errstate(invalid="ignore"):  # noise has no momentum
        hard = particle_values(matches, truth.pt) > min_pt
    return np.asarray(hard & (matches.particle_size >= min_hits))


def total(scores: Iterable[Score]) -> Score:
    """Return the sum of the counts: rates over all events, each particle and each track weighing the same."""
    columns = np.array([astuple(score) for score in scores], dtype=np.int64).reshape(-1, 7)
    names = Score.__dataclass_fields__
    return Score(**dict(zip(names, columns.sum(axis=0).tolist(), strict=True)))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
