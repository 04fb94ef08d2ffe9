"""Truth-labelled events from ACTS: Fatras simulates particles in the GenericDetector.

Particles, beam, field and resolutions are those of the numpy generator. The detector differs: modules overlap, material
scatters particles and absorbs energy, and there are secondaries. Fatras drops a particle that turns back in the field,
with all its hits; with a spectrum from 0.4 GeV on, these are 2 % of the particles. ACTS comes with `pyacts`, the extra
`acts`, and is imported at the first event.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.constants import Int64
from exatrkx_hpc.tracking.simulation.detector import DEFAULT_GEOMETRY, Float64, Tracks, draw_tracks, smear
from exatrkx_hpc.tracking.simulation.synthetic import (
    DEFAULT_NOISE,
    DEFAULT_TRACKS,
    Source,
    TruthEvent,
    generate_event,
    shuffled_event,
)

SourceName = Literal["auto", "acts", "helices"]

#: Volumes 8, 13 and 17 of the GenericDetector are barrels; the hits of all other volumes are on discs.
_BARRELS = (8, 13, 17)
#: ACTS's names of each particle and its antiparticle, by the direction of their turn, and the share of each kind.
_SPECIES = (
    ("ePionPlus", "ePionMinus"),
    ("eKaonPlus", "eKaonMinus"),
    ("eProton", "eAntiProton"),
    ("ePositron", "eElectron"),
)
_SHARES = (0.84, 0.09, 0.05, 0.02)


def event_source(name: SourceName) -> Source:
    """Return the event source: ACTS, the helices of the numpy generator, or ("auto") ACTS if it is installed.

    Raises ImportError when ACTS is requested by name and is not installed.
    """
    if name == "helices" or (name == "auto" and not is_installed()):
        return generate_event
    if not is_installed():
        raise ImportError("No module named 'acts'")
    return simulate_event


def is_installed() -> bool:
    """Return whether pyacts is installed, without importing it."""
    return importlib.util.find_spec("acts") is not None


def simulate_event(
    rng: np.random.Generator, *, n_tracks: int = DEFAULT_TRACKS, noise_fraction: float = DEFAULT_NOISE
) -> TruthEvent:
    """Return one event of `n_tracks` simulated particles, with about 12 hits each, and their secondaries.

    `noise_fraction` is the mean share of noise among the hits. Noise lies on sensors: at the radius and z of simulated
    hits, at any phi. The same state of `rng` and release of pyacts give the same event. Raises ImportError without
    pyacts, ValueError for a number out of range.
    """
    if n_tracks < 0 or not 0.0 <= noise_fraction < 1.0:
        raise ValueError(f"n_tracks is {n_tracks} and noise_fraction {noise_fraction}: give >= 0 and [0, 1)")
    geometry = DEFAULT_GEOMETRY
    tracks = draw_tracks(rng, n_tracks, geometry=geometry)
    species = rng.choice(len(_SPECIES), size=n_tracks, p=_SHARES)
    hits, particles = _fatras().run(tracks, species, seed=int(rng.integers(2**31)))
    owner, place, barrel = _read(hits, {particle.particleId: n for n, particle in enumerate(particles, 1)})
    seen = rng.random(len(owner)) < geometry.efficiency
    owner, place, barrel = owner[seen], place[seen], barrel[seen]
    n_noise = int(rng.poisson(len(owner) * noise_fraction / (1.0 - noise_fraction)))
    stray = rng.integers(len(owner), size=n_noise) if len(owner) else np.empty(0, dtype=np.int64)
    noise = np.stack([place[stray, 0], rng.uniform(-np.pi, np.pi, len(stray)), place[stray, 2]], axis=1)
    return shuffled_event(
        rng,
        np.concatenate([owner, np.zeros(len(stray), dtype=np.int64)]),
        np.concatenate([smear(rng, place, barrel, geometry=geometry), noise]),
        pt=np.array([particle.transverseMomentum for particle in particles]),
        eta=np.array([-np.log(np.tan(0.5 * particle.theta)) for particle in particles]),
    )


def _read(hits: Iterable[Any], number: dict[Any, int]) -> tuple[Int64, Float64, NDArray[np.bool_]]:
    """Return the owner `[H]`, the position `[H, 3]` (r mm, phi rad, z mm) and "in a barrel" `[H]` of ACTS's hits.

    The hits of a particle that ACTS dropped have no number, and are left out.
    """
    rows = []
    for hit in hits:
        owner, at = number.get(hit.particleId), hit.fourPosition
        if owner is not None:
            rows.append((owner, at[0], at[1], at[2], hit.geometryId.volume))
    table = np.array(rows).reshape(-1, 5)
    x, y, z = table[:, 1:4].T
    place = np.stack([np.hypot(x, y), np.arctan2(y, x), z], axis=1)
    return table[:, 0].astype(np.int64), place, np.isin(table[:, 4], _BARRELS)


class _Door(Protocol):
    """A data handle of ACTS, which writes an object to an event's whiteboard or reads it."""

    def initialize(self, key: str) -> None: ...
    def __call__(self, *place: object) -> Any: ...  # noqa: ANN401


class _Fatras:
    """The detector, its field, and the data handles of the particles and the hits."""

    def __init__(self) -> None:
        import acts
        from acts import examples

        self.acts, self.examples, quiet = acts, examples, acts.logging.ERROR
        config = examples.GenericDetector.Config()
        config.logLevel = config.surfaceLogLevel = config.layerLogLevel = config.volumeLogLevel = quiet
        self.detector = examples.GenericDetector(config)
        self.field = acts.ConstantBField(acts.Vector3(0.0, 0.0, DEFAULT_GEOMETRY.field * acts.UnitConstants.T))
        # A handle belongs to an algorithm; this one is never run.
        self.owner = examples.IAlgorithm("doors", quiet)
        self.put = self._door(examples.WriteDataHandle, examples.SimParticleContainer, "particles")
        self.hits = self._door(examples.ReadDataHandle, examples.SimHitContainer, "hits")
        self.simulated = self._door(examples.ReadDataHandle, examples.SimParticleContainer, "simulated")

    def run(self, tracks: Tracks, species: Int64, *, seed: int) -> tuple[Iterable[Any], list[Any]]:
        """Simulate the particles; return ACTS's hits and all simulated particles, with or without hits."""
        quiet = self.acts.logging.ERROR
        simulation = self.examples.FatrasSimulation(
            level=quiet,
            inputParticles="particles",
            outputParticles="simulated",
            outputSimHits="hits",
            randomNumbers=self.examples.RandomNumbers(seed=seed),
            trackingGeometry=self.detector.trackingGeometry(),
            magneticField=self.field,
            generateHitsOnSensitive=True,
            emScattering=True,
            emEnergyLossIonisation=True,
            emEnergyLossRadiation=True,
            emPhotonConversion=True,
        )
        board = self.examples.WhiteBoard(quiet)
        context = self.examples.AlgorithmContext(0, 0, board, 0)
        self.put(context, self._particles(tracks, species))
        simulation.execute(context)
        return self.hits(board), list(self.simulated(board))

    def _particles(self, tracks: Tracks, species: Int64) -> object:
        from acts.fatras import Barcode

        box = self.examples.SimParticleContainer()
        momentum = tracks.pt * np.cosh(tracks.eta)
        along, across = np.tanh(tracks.eta), 1.0 / np.cosh(tracks.eta)
        for i in range(len(tracks.pt)):
            barcode = Barcode()
            barcode.vertexPrimary, barcode.particle = 1, i + 1
            # A positive charge turns clockwise in a field along +z, as `sign` -1 does in the numpy generator.
            name = _SPECIES[species[i]][int(tracks.sign[i] > 0)]
            particle = self.examples.SimParticle(barcode, getattr(self.acts.PdgParticle, name))
            particle.fourPosition = self.acts.Vector4(tracks.x[i], tracks.y[i], tracks.z[i], 0.0)
            phi = tracks.phi[i]
            particle.direction = self.acts.Vector3(across[i] * np.cos(phi), across[i] * np.sin(phi), along[i])
            particle.absoluteMomentum = momentum[i]
            box.insert(particle)
        return box

    def _door(self, handle: Callable[..., _Door], content: type[object], name: str) -> _Door:
        door = handle(self.owner, content, name)
        door.initialize(name)
        return door


@lru_cache(maxsize=1)
def _fatras() -> _Fatras:
    return _Fatras()
