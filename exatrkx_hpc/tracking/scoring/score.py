"""Quality of labels, measured against the truth.

A track is the set of hits that share a label. It is a candidate if it has at least `MIN_TRACK_HITS` hits, because
three points define a helix. A track *matches* a particle if more than half of its hits belong to that particle: the
matching ratio of 0.5 of Acts' TrackTruthMatcher. It *finds* the particle if it also holds more than half of the
particle's hits: the double majority of TrackML (Amrouche et al., arXiv:1904.06778).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

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
    """Counts over one or more events; the rates are their quotients, nan if the denominator is 0.

    `particles` have enough hits and momentum; `found` of them have a track by double majority. `tracks` are
    candidates; `matched` of them match a particle; `duplicates` of these are not the best match of their particle.
    `matched_hits` are the hits of the matched tracks; `right_hits` of them belong to the matched particle.
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
        """The share of tracks that match no particle, such as groups of noise."""
        return _share(self.tracks - self.matched, self.tracks)

    @property
    def duplicate_rate(self) -> float:
        """The share of tracks that match a particle, but are not its best match."""
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
    """Return the counts of one event from its `matches`; see `score_event`."""
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
    """Return whether each particle of `matches` counts, `[P + 1]`; noise, number 0, never counts."""
    with np.errstate(invalid="ignore"):  # noise has no momentum
        hard = particle_values(matches, truth.pt) > min_pt
    return np.asarray(hard & (matches.particle_size >= min_hits))


def total(scores: Iterable[Score]) -> Score:
    """Return the sum of the counts: its rates give equal weight to each particle and to each track of all events."""
    rows = list(scores)
    return Score(**{count.name: sum(getattr(row, count.name) for row in rows) for count in fields(Score)})


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
