"""The rates of a score against pT and eta, in bins, with the uncertainty of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.scoring.matching import Matches, particle_values
from exatrkx_hpc.tracking.scoring.score import MIN_PARTICLE_HITS, MIN_PT_GEV, counted_particles
from exatrkx_hpc.tracking.simulation.kinematics import track_parameters
from exatrkx_hpc.tracking.simulation.synthetic import TruthEvent

Float64 = NDArray[np.float64]
Rate = Literal["efficiency", "purity", "fake_rate", "duplicate_rate"]
Variable = Literal["pt", "eta"]

#: Edges of the bins. Values below the first edge count in the first bin, values above the last edge in the last bin.
EDGES: dict[Variable, Float64] = {
    "pt": np.array([0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0]),
    "eta": np.linspace(-4.0, 4.0, 17),
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One rate against one variable: the edges of B bins, `[B + 1]`, and `part` of `whole` in each, `[B]` (int64).

    Efficiency counts particles, at the pT (GeV) and eta of the particle; against pT, it also counts particles below the
    pT cut. The other rates use the pT and eta that are estimated from the track's hits: fake and duplicate rate count
    tracks, purity counts hits of tracks.
    """

    rate: Rate
    variable: Variable
    edges: Float64
    part: NDArray[np.int64]
    whole: NDArray[np.int64]

    @property
    def share(self) -> Float64:
        """The rate in each bin, `[B]`; nan in an empty one."""
        return np.divide(self.part, self.whole, out=np.full(len(self.whole), np.nan), where=self.whole > 0)

    @property
    def interval(self) -> tuple[Float64, Float64]:
        """The `wilson_interval` of each bin; too narrow for purity, as hits of one track are not independent."""
        return wilson_interval(self.part, self.whole)


def wilson_interval(part: NDArray[np.int64], whole: NDArray[np.int64], *, z: float = 1.0) -> tuple[Float64, Float64]:
    """Return the lower and the upper end of the score interval of a share; nan where `whole` is 0.

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209; `z` of 1 is a coverage of 68 %. It is not empty at 0 or 1.
    """
    n = np.where(whole > 0, whole, np.nan)
    share = part / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0.0, share), np.clip(centre + half, share, 1.0)


def profile_event(
    matches: Matches, truth: TruthEvent, *, min_pt: float = MIN_PT_GEV, min_hits: int = MIN_PARTICLE_HITS
) -> tuple[Profile, ...]:
    """Return the profiles of one event: each of the four rates against pT and against eta."""
    pt, eta = track_parameters(truth.hits, matches.track, n_tracks=len(matches.size))
    enough = counted_particles(matches, truth, min_pt=-1.0, min_hits=min_hits)
    counted = counted_particles(matches, truth, min_pt=min_pt, min_hits=min_hits)
    profiles = []
    variables: tuple[tuple[Variable, Float64, Float64, NDArray[np.bool_]], ...] = (
        ("pt", particle_values(matches, truth.pt), pt, enough),
        ("eta", particle_values(matches, truth.eta), eta, counted),
    )
    for variable, of_particle, of_track, particles in variables:
        rates: tuple[tuple[Rate, Float64, NDArray[np.int64], NDArray[np.int64]], ...] = (
            ("efficiency", of_particle, (particles & matches.found).astype(np.int64), particles.astype(np.int64)),
            ("purity", of_track, matches.shared * matches.matched, matches.size * matches.matched),
            ("fake_rate", of_track, (matches.candidate & ~matches.matched).astype(np.int64), matches.candidate * 1),
            ("duplicate_rate", of_track, matches.duplicate * 1, matches.candidate * 1),
        )
        profiles += [_filled(rate, variable, at, part, whole) for rate, at, part, whole in rates]
    return tuple(profiles)


def total_profiles(events: Sequence[tuple[Profile, ...]]) -> tuple[Profile, ...]:
    """Return the sum of the profiles of several events; empty without events."""
    return tuple(
        replace(same[0], part=sum(one.part for one in same), whole=sum(one.whole for one in same))
        for same in zip(*events, strict=True)
    )


def _filled(rate: Rate, variable: Variable, at: Float64, part: NDArray[np.int64], whole: NDArray[np.int64]) -> Profile:
    edges = EDGES[variable]
    known = whole > 0
    place = np.clip(np.searchsorted(edges, at[known], side="right") - 1, 0, len(edges) - 2)

    def filled(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(place, counts[known], minlength=len(edges) - 1).astype(np.int64)

    return Profile(rate=rate, variable=variable, edges=edges, part=filled(part), whole=filled(whole))
