"""Quality of fitted tracks, measured against the truth: efficiency, fakes, duplicates, purity, resolutions, pulls.

A particle counts if the generator made it (no secondaries), with pT above 1 GeV and at least 7 measurements. It is
found by double majority (see `match_tracks`). A track is a fake if no particle owns more than half of its measurements.
Residuals compare the parameters of a matched track at its first measurement with those of its particle on that module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from exatrkx_hpc.traccc.cells import Float64, Int64
from exatrkx_hpc.traccc.scoring.matching import Matches, match_tracks
from exatrkx_hpc.traccc.simulation.truth import Passages, Truth
from exatrkx_hpc.traccc.tracks import Tracks
from exatrkx_hpc.tracking.scoring.matching import Bools
from exatrkx_hpc.tracking.scoring.score import MIN_PT_GEV, Score, total

MIN_HITS = 7
#: The parameters with residuals and pulls, in the order of a track's covariance; their units are mm, rad and e / GeV.
FITTED = ("loc0", "loc1", "phi", "theta", "qop")


def _none() -> Float64:
    return np.empty((0, len(FITTED)))


@dataclass(frozen=True, kw_only=True)
class TrackScore(Score):
    """The counts of `Score`, with measurements for hits, and how far the fits are from the truth.

    `residuals` and `pulls` `[R, 5]`, in the order of FITTED, are those of the best track of each particle that counts.
    A track has none if its first measurement is not the particle's, or if a variance there is not above 0: the chain
    writes 0 for a covariance that is not a number or too large.
    """

    residuals: Float64 = field(default_factory=_none, repr=False)
    pulls: Float64 = field(default_factory=_none, repr=False)

    @property
    def resolutions(self) -> dict[str, float]:
        """Half the width of the central 68.3 % of the residuals of each parameter (mm, rad, e / GeV)."""
        return {name: _width(column) for name, column in zip(FITTED, self.residuals.T, strict=True)}

    @property
    def pull_widths(self) -> dict[str, float]:
        """The same of the pulls, which is 1 if the covariances are right."""
        return {name: _width(column) for name, column in zip(FITTED, self.pulls.T, strict=True)}


def score_tracks(tracks: Tracks, truth: Truth, *, min_pt: float = MIN_PT_GEV, min_hits: int = MIN_HITS) -> TrackScore:
    """Return the counts of one event; a particle needs more than `min_pt` GeV and at least `min_hits` measurements."""
    matches = match_tracks(tracks, truth)
    particles = truth.particles
    counts = particles.generated & (particles.pt > min_pt) & (matches.hits >= min_hits)
    residuals, pulls = _residuals(tracks, truth, matches, counts)
    return TrackScore(
        particles=int(counts.sum()),
        found=int((counts & matches.found).sum()),
        tracks=len(tracks),
        matched=int(matches.matched.sum()),
        duplicates=int(matches.duplicate.sum()),
        matched_hits=int(tracks.lengths[matches.matched].sum()),
        right_hits=int(matches.shared[matches.matched].sum()),
        residuals=residuals,
        pulls=pulls,
    )


def total_track_scores(scores: Iterable[TrackScore]) -> TrackScore:
    """Return the sum of the counts of several events, with the residuals and pulls of all."""
    rows = list(scores)
    return TrackScore(
        **asdict(total(rows)),
        residuals=np.concatenate([_none(), *(row.residuals for row in rows)]),
        pulls=np.concatenate([_none(), *(row.pulls for row in rows)]),
    )


def _residuals(tracks: Tracks, truth: Truth, matches: Matches, counts: Bools) -> tuple[Float64, Float64]:
    """Return residuals and pulls, `[R, 5]` each; see `TrackScore`."""
    best = matches.matched & ~matches.duplicate
    best &= counts[matches.owner] if len(counts) else False
    row = tracks.first[best]
    passage = _passage(truth.passages, matches.measurement[row], matches.owner[best])
    known = passage >= 0
    row, passage = row[known], passage[known]
    true = truth.passages
    expected = np.column_stack([true.local[passage], true.phi[passage], true.theta[passage], true.qop[passage]])
    apart = tracks.parameters[best][known][:, 2:7].astype(np.float64) - expected
    apart[:, 2] = np.remainder(apart[:, 2] + np.pi, 2.0 * np.pi) - np.pi
    variance = tracks.covariances[row].reshape(-1, 5, 5)[:, range(5), range(5)].astype(np.float64)
    good = (variance > 0).all(axis=1)
    return apart[good], apart[good] / np.sqrt(variance[good])


def _passage(passages: Passages, measurement: Int64, particle: Int64) -> Int64:
    """Return the number of the passage of each particle that made the measurement, or -1 if it made none."""
    span = int(passages.particle.max(initial=0)) + 1
    keys = passages.measurement * span + passages.particle
    order = np.argsort(keys, kind="stable")
    wanted = measurement * span + particle
    place = np.minimum(np.searchsorted(keys[order], wanted), max(len(keys) - 1, 0))
    if not len(keys):
        return np.full(len(wanted), -1)
    return np.where(keys[order][place] == wanted, order[place], -1)


def _width(values: Float64) -> float:
    if not len(values):
        return float("nan")
    low, high = np.quantile(values, (0.1585, 0.8415))
    return float(high - low) / 2.0
