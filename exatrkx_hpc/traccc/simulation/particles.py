"""The particles of an event before they meet the detector: a hard collision, and pile-up with vertices of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exatrkx_hpc.traccc.cells import Float64, Int64

#: ACTS's names of each particle and its antiparticle, and the share of each kind.
SPECIES = (
    ("ePionMinus", "ePionPlus"),
    ("eKaonMinus", "eKaonPlus"),
    ("eAntiProton", "eProton"),
    ("eElectron", "ePositron"),
)
_SHARES = (0.84, 0.09, 0.05, 0.02)


@dataclass(frozen=True, kw_only=True)
class Beam:
    """How events look: lengths in mm, momenta in GeV.

    The vertices of an event have a normal distribution with the widths `spread_r` (x and y) and `spread_z`. The hard
    collision has `hard_particles` particles; every pile-up vertex has one and a Poisson number with the mean
    `particles_per_vertex` more. pT follows dN/dx ~ (1 + x / 3m)^-5 with x = pT - `min_pt` and the mean m of x,
    `hard_extra_pt` or `extra_pt`; pseudorapidity and phi are flat. The share `displaced_fraction` of the particles
    comes from a decay after a flight of `displacement` (mean, exponential) across the beam.
    """

    spread_r: float = 0.01
    spread_z: float = 50.0
    hard_particles: int = 30
    particles_per_vertex: float = 19.0
    min_pt: float = 0.4
    hard_extra_pt: float = 2.0
    extra_pt: float = 0.8
    max_eta: float = 2.5
    displaced_fraction: float = 0.0
    displacement: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of each of P particles, `[P]` each.

    `vertex` is 0 for the hard collision and 1, 2, ... for pile-up; `species` is a row of SPECIES; `charge` is -1 or +1;
    `position` `[P, 3]` is in mm, `pt` in GeV; `displaced` says whether the particle starts away from its vertex.
    """

    vertex: Int64
    species: Int64
    charge: Int64
    position: Float64
    phi: Float64
    eta: Float64
    pt: Float64
    displaced: Int64


def draw_particles(rng: np.random.Generator, *, pile_up: float, beam: Beam) -> Start:
    """Return the particles of one event with a Poisson number of pile-up vertices, whose mean is `pile_up`."""
    sizes = np.concatenate([[beam.hard_particles], 1 + rng.poisson(beam.particles_per_vertex, rng.poisson(pile_up))])
    vertices = rng.normal(0.0, (beam.spread_r, beam.spread_r, beam.spread_z), (len(sizes), 3))
    vertex = np.repeat(np.arange(len(sizes)), sizes)
    n = len(vertex)
    phi = rng.uniform(-np.pi, np.pi, n)
    eta = rng.uniform(-beam.max_eta, beam.max_eta, n)
    mean = np.where(vertex == 0, beam.hard_extra_pt, beam.extra_pt)
    pt = beam.min_pt + 3.0 * mean * ((1.0 - rng.random(n)) ** -0.25 - 1.0)
    displaced = rng.random(n) < beam.displaced_fraction
    flight = rng.exponential(beam.displacement, n) * displaced
    # The mother flew in nearly the direction of the particle.
    way = phi + rng.normal(0.0, 0.3, n)
    moved = np.stack([flight * np.cos(way), flight * np.sin(way), flight * np.sinh(eta)], axis=1)
    return Start(
        vertex=vertex,
        species=rng.choice(len(SPECIES), size=n, p=_SHARES),
        charge=rng.choice([-1, 1], size=n),
        position=vertices[vertex] + moved,
        phi=phi,
        eta=eta,
        pt=pt,
        displaced=displaced.astype(np.int64),
    )
