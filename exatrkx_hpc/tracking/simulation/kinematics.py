"""Estimate momentum and direction from the hits of a track, without a fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import PHI_SCALE, R_SCALE_MM, Z_SCALE_MM, Float32, Int64
from exatrkx_hpc.tracking.simulation.detector import DEFAULT_GEOMETRY

Float64 = NDArray[np.float64]


def track_parameters(
    hits: Float32, track: Int64, *, n_tracks: int, field: float = DEFAULT_GEOMETRY.field
) -> tuple[Float64, Float64]:
    """Return pT in GeV and eta of each of `n_tracks` tracks, `[T]` each, from hits `[N, 3]` and their tracks `[N]`.

    pT is 0.3 B R of the circle through the hits in the transverse plane (least squares of x^2 + y^2 + Dx + Ey + F,
    after I. Kasa, IEEE Trans. Instrum. Meas. 25 (1976) 8), in a field of `field` tesla along z; infinite for a
    straight line. eta is that of the line through the hits in r and z. Both are estimates for plots, not measurements;
    they also work for tracks without a particle.
    """
    r, phi, z = (hits.astype(np.float64) * (R_SCALE_MM, PHI_SCALE, Z_SCALE_MM)).T
    n = np.maximum(np.bincount(track, minlength=n_tracks), 1)

    def mean(values: Float64) -> Float64:
        return np.asarray(np.bincount(track, values, minlength=n_tracks) / n)

    u, v, dr, dz = (values - mean(values)[track] for values in (r * np.cos(phi), r * np.sin(phi), r, z))
    square = u**2 + v**2
    uu, uv, vv, a, b = mean(u * u), mean(u * v), mean(v * v), 0.5 * mean(u * square), 0.5 * mean(v * square)
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = uu * vv - uv**2
        # On a line it is 0 except for rounding: 1e-13 is a sagitta of less than 1 micrometre in a metre.
        determinant = np.where(determinant > 1e-13 * (uu + vv) ** 2, determinant, 0.0)
        radius = np.sqrt(((a * vv - b * uv) ** 2 + (b * uu - a * uv) ** 2) / determinant**2 + uu + vv)
        slope = np.where(mean(dr**2) > 1.0, mean(dr * dz) / mean(dr**2), mean(z) / mean(r))  # 1 mm^2
    radius = np.where(np.isfinite(radius), radius, np.inf)
    return 0.3 * field * radius / 1000.0, np.arcsinh(np.nan_to_num(slope))
