"""The rates of a score with their intervals."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking.scoring.profiles import wilson_interval
from exatrkx_hpc.tracking.scoring.score import Score


def rates_of(score: Score) -> dict[str, tuple[float, float, float]]:
    """Return each rate as (value, low, high) with its `wilson_interval`; nan if the denominator is 0."""
    counts = {
        "efficiency": (score.found, score.particles),
        "purity": (score.right_hits, score.matched_hits),
        "fake_rate": (score.tracks - score.matched, score.tracks),
        "duplicate_rate": (score.duplicates, score.tracks),
    }
    found = {}
    for name, (part, whole) in counts.items():
        low, high = wilson_interval(np.array([part]), np.array([whole]))
        found[name] = (float(getattr(score, name)), float(low[0]), float(high[0]))
    return found
