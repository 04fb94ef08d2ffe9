"""A toy detector: helices in a solenoid through barrel layers and endcap discs, as arrays.

It is simple on purpose: no material except a thin scatterer at each surface, no energy loss, no secondaries, at most
one hit per crossing. The radii and lengths are rounded from those of the TrackML detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Int64

Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The detector and the beam: lengths in mm, field in tesla, momenta in GeV, angles in radian.

    `barrel` holds (radius, half length), `discs` (|z|, inner radius, outer radius) of the discs of one side.
    Resolutions are (across, along): r phi and z on a layer, r phi and r on a disc.
    """

    barrel: tuple[tuple[float, float], ...] = (
        *((r, 500.0) for r in (32.0, 72.0, 116.0, 172.0)),
        *((r, 1080.0) for r in (260.0, 360.0, 500.0, 660.0, 820.0, 1000.0)),
    )
    discs: tuple[tuple[float, float, float], ...] = (
        *((z, 30.0, 176.0) for z in (600.0, 700.0, 820.0, 960.0, 1120.0, 1320.0, 1500.0)),
        *((z, 240.0, 1020.0) for z in (1220.0, 1550.0, 1850.0, 2150.0, 2550.0, 2950.0)),
    )
    field: float = 2.0
    beam_spread_r: float = 0.02
    beam_spread_z: float = 50.0
    displaced_fraction: float = 0.03
    displacement: float = 10.0
    min_pt: float = 0.4
    mean_extra_pt: float = 0.8
    max_eta: float = 2.8
    pixel_radius: float = 200.0
    resolution_pixel: tuple[float, float] = (0.02, 0.07)
    resolution_strip: tuple[float, float] = (0.06, 0.6)
    scattering: float = 0.0015
    efficiency: float = 0.98


DEFAULT_GEOMETRY = Geometry()


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The start of each particle, `[T]` each; `sign` is the direction of its turn in the transverse plane."""

    x: Float64
    y: Float64
    z: Float64
    phi: Float64
    pt: Float64
    eta: Float64
    sign: Float64


def draw_tracks(rng: np.random.Generator, n: int, *, geometry: Geometry) -> Tracks:
    """Return `n` particles: flat in eta and phi, a falling power law in pT, a few from a displaced vertex."""
    displaced = rng.exponential(geometry.displacement, n) * (rng.random(n) < geometry.displaced_fraction)
    phi = rng.uniform(-np.pi, np.pi, n)
    flight = phi + rng.normal(0.0, 0.3, n)
    x, y = rng.normal(0.0, geometry.beam_spread_r, (2, n))
    # A soft spectrum with a hard tail, dN/dx ~ (1 + x / 3m)^-5 with x = pT - min_pt, whose mean is m.
    extra = 3.0 * geometry.mean_extra_pt * ((1.0 - rng.random(n)) ** -0.25 - 1.0)
    return Tracks(
        x=x + displaced * np.cos(flight),
        y=y + displaced * np.sin(flight),
        z=rng.normal(0.0, geometry.beam_spread_z, n),
        phi=phi,
        pt=geometry.min_pt + extra,
        eta=rng.uniform(-geometry.max_eta, geometry.max_eta, n),
        sign=rng.choice([-1.0, 1.0], n),
    )


def propagate(rng: np.random.Generator, tracks: Tracks, *, geometry: Geometry) -> tuple[Int64, Float64]:
    """Return the owner `[H]` (int64) and the position `[H, 3]` (r mm, phi rad, z mm) of every hit.

    A particle leaves hits only on its way out, from the point nearest to the beam to the turning point.
    """
    radius = tracks.pt[:, None] * 1000.0 / (0.3 * geometry.field)
    sign, first = tracks.sign[:, None], tracks.phi[:, None] - tracks.sign[:, None] * np.pi / 2
    centre_x = tracks.x[:, None] - radius * np.cos(first)
    centre_y = tracks.y[:, None] - radius * np.sin(first)
    # The azimuth around the centre runs from -pi, nearest to the beam, to 0, farthest from it.
    start = np.remainder(sign * (first - np.arctan2(centre_y, centre_x)), 2 * np.pi) - 2 * np.pi
    turn = _turns(tracks, start, radius, np.hypot(centre_x, centre_y), geometry)
    angle = first + sign * turn
    x, y = centre_x + radius * np.cos(angle), centre_y + radius * np.sin(angle)
    z = tracks.z[:, None] + radius * turn * np.sinh(tracks.eta[:, None])
    place = np.stack([np.hypot(x, y), np.arctan2(y, x), z], axis=2)
    crossed = np.isfinite(turn) & _inside(place, geometry)
    scattered = place + _scatter(rng, np.where(crossed, radius * turn, np.inf), place, tracks, geometry)
    seen = crossed & (rng.random(crossed.shape) < geometry.efficiency)
    owner, surface = np.nonzero(seen)
    smeared = smear(rng, scattered[seen], surface < len(geometry.barrel), geometry=geometry)
    return owner.astype(np.int64), smeared


def draw_noise(rng: np.random.Generator, n: int, *, geometry: Geometry) -> Float64:
    """Return the positions `[n, 3]` (r mm, phi rad, z mm) of `n` noise hits on surfaces drawn at random."""
    low = np.array([(r, -half) for r, half in geometry.barrel] + [(a, z) for z, a, _ in _discs(geometry)])
    high = np.array([(r, half) for r, half in geometry.barrel] + [(b, z) for z, _, b in _discs(geometry)])
    surface = rng.integers(len(low), size=n)
    place = rng.uniform(low[surface], high[surface])
    return np.stack([place[:, 0], rng.uniform(-np.pi, np.pi, n), place[:, 1]], axis=1)


def _discs(geometry: Geometry) -> list[tuple[float, float, float]]:
    return [(side * z, inner, outer) for side in (-1.0, 1.0) for z, inner, outer in geometry.discs]


def _turns(tracks: Tracks, start: Float64, radius: Float64, distance: Float64, geometry: Geometry) -> Float64:
    """Return the angle `[T, S]` that each particle turns until it crosses each surface; nan if it does not."""
    layers = np.array([r for r, _ in geometry.barrel])
    cosine = (layers**2 - distance**2 - radius**2) / (2 * distance * radius)
    met = np.abs(cosine) <= 1.0
    to_layers = np.where(met, -np.arccos(np.where(met, cosine, 0.0)), np.inf) - start
    disc_z = np.array([z for z, _, _ in _discs(geometry)])
    to_discs = (disc_z - tracks.z[:, None]) / (radius * np.sinh(tracks.eta[:, None]))
    turn = np.concatenate([to_layers, to_discs], axis=1)
    outward = (turn > 0.0) & (start + turn > -np.pi) & (start + turn <= 0.0)
    return np.where(outward, turn, np.nan)


def _inside(place: Float64, geometry: Geometry) -> NDArray[np.bool_]:
    """Return whether each crossing `[T, S]` is within the bounds of its surface."""
    n = len(geometry.barrel)
    halves = np.array([half for _, half in geometry.barrel])
    inner, outer = np.array([(a, b) for _, a, b in _discs(geometry)]).T
    r = place[:, n:, 0]
    return np.concatenate([np.abs(place[:, :n, 2]) <= halves, (r >= inner) & (r <= outer)], axis=1)


def _scatter(rng: np.random.Generator, path: Float64, place: Float64, tracks: Tracks, geometry: Geometry) -> Float64:
    """Return the shifts `[T, S, 3]` by kinks at all earlier surfaces; `path` is infinite for surfaces not crossed."""
    order = np.argsort(path, axis=1)
    reached = np.take_along_axis(path, order, axis=1)
    reached = np.where(np.isfinite(reached), reached, 0.0)
    kink = rng.normal(size=(2, *path.shape)) * (geometry.scattering / tracks.pt)[:, None]
    # A kink k at path p shifts the hit at path s by k (s - p): the sum over all p < s, by running sums.
    shift = np.cumsum(kink, axis=2) * reached - np.cumsum(kink * reached, axis=2)
    shift = np.stack([_put(shift[0], order), _put(shift[1], order)])
    n, sine, cosine = len(geometry.barrel), 1 / np.cosh(tracks.eta), np.abs(np.tanh(tracks.eta))
    out = np.zeros_like(place)
    out[:, :, 1] = shift[0] / np.maximum(place[:, :, 0], 1.0)
    out[:, :n, 2] = shift[1, :, :n] / sine[:, None]
    out[:, n:, 0] = shift[1, :, n:] / np.maximum(cosine, 0.1)[:, None]
    return out


def _put(ordered: Float64, order: Int64) -> Float64:
    """Undo the sorting of each row."""
    out = np.empty_like(ordered)
    np.put_along_axis(out, order, ordered, axis=1)
    return out


def smear(rng: np.random.Generator, place: Float64, barrel: NDArray[np.bool_], *, geometry: Geometry) -> Float64:
    """Return the positions `[H, 3]` (r mm, phi rad, z mm) as the sensors of `geometry` measure them.

    `barrel` `[H]` marks the hits on a layer, where r is exact; on a disc z is exact.
    """
    pixel = place[:, :1] < geometry.pixel_radius
    sigma = np.where(pixel, geometry.resolution_pixel, geometry.resolution_strip)
    across, along = (rng.normal(size=sigma.shape) * sigma).T
    shift = np.stack([np.where(barrel, 0.0, along), across / place[:, 0], np.where(barrel, along, 0.0)], axis=1)
    return np.asarray(place + shift)
