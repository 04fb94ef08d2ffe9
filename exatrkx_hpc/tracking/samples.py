"""Events for warm-up, with about the number and density of real hits; not for physics.

Training and tests have better events (simulation/synthetic.py), but only this module is copied to the servers.
"""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.tracking.constants import R_SCALE_MM, Z_SCALE_MM, Float32

#: Radii (mm) of ten layers, as in silicon trackers, and their half length (mm).
_LAYERS = np.array([32.0, 72.0, 116.0, 172.0, 260.0, 360.0, 500.0, 660.0, 820.0, 1020.0])
_HALF_LENGTH = 1080.0
#: Largest pseudorapidity, spread of the tracks' start along z (mm, one sigma) and of their bend (pi / mm, one sigma).
_ETA, _BEAM_SPOT, _BEND = 2.0, 50.0, 1.5e-4


def sample_hits(rng: np.random.Generator, *, tracks: int) -> Float32:
    """Return the hits of bent tracks from the beam, float32 `[N, 3]` (r/3000, phi/pi, z/400), in random order.

    A track has a hit in each layer that it crosses within the detector: ten or fewer.
    """
    phi, eta = rng.uniform(-1.0, 1.0, tracks), rng.uniform(-_ETA, _ETA, tracks)
    start, bend = rng.normal(0.0, _BEAM_SPOT, tracks), rng.normal(0.0, _BEND, tracks)
    r = np.broadcast_to(_LAYERS, (tracks, len(_LAYERS)))
    z = start[:, None] + r * np.sinh(eta)[:, None]
    turned = np.remainder(phi[:, None] + bend[:, None] * r + 1.0, 2.0) - 1.0
    hits = np.stack([r / R_SCALE_MM, turned, z / Z_SCALE_MM], axis=-1)[np.abs(z) < _HALF_LENGTH]
    shuffled: Float32 = rng.permutation(hits).astype(np.float32)
    return shuffled
