"""Events of cells: Fatras moves particles through the GenericDetector, and ACTS digitizes what they leave in silicon.

Only a CSV writer of ACTS gives the cells away, so they pass through a temporary folder. ACTS writes the time 0 for each
cell; here it is the mean true time of the cell's measurement. Fatras drops a particle that turns back in the field,
with all its hits. pyacts is the extra `acts`, and is imported at the first event.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.traccc.cells import Cells, Float64, Int64
from exatrkx_hpc.traccc.detector import DIGITIZATION_FILE, generic_detector
from exatrkx_hpc.traccc.pyacts import NANOSECOND, Acts
from exatrkx_hpc.traccc.simulation.particles import SPECIES, Beam, Start, draw_particles
from exatrkx_hpc.traccc.simulation.truth import CellEvent, Particles, Passages, Truth

DEFAULT_BEAM = Beam()
#: Mean number of pile-up vertices; an event has about 8,000 cells.
DEFAULT_PILE_UP = 8.0

_Rows = NDArray[Any]
#: The columns of ACTS's files that are read, and their types.
_CELLS = {"geometry_id": "u8", "measurement_id": "i8", "channel0": "i8", "channel1": "i8", "value": "f4"}
_MEASUREMENTS = {"geometry_id": "u8", "local0": "f8", "local1": "f8"}
_LINKS = {"measurement_id": "i8", "hit_id": "i8"}
_BARCODE = {f"particle_id_{part}": "i8" for part in ("pv", "sv", "part", "gen", "subpart")}
_HITS = _BARCODE | {"geometry_id": "u8"}
_HITS |= dict.fromkeys(("tx", "ty", "tz", "tt", "tpx", "tpy", "tpz", "deltapx", "deltapy", "deltapz"), "f8")
_PARTICLES = _BARCODE | dict.fromkeys(("vx", "vy", "vz", "px", "py", "pz", "q"), "f8")


def simulate_cells(
    rng: np.random.Generator, *, pile_up: float = DEFAULT_PILE_UP, beam: Beam = DEFAULT_BEAM
) -> CellEvent:
    """Return one event of a hard collision and a Poisson number of pile-up vertices (mean `pile_up`).

    A particle leaves about 40 cells: `pile_up` 8 gives about 8,000 cells, 190 gives 150,000. The same state of `rng`
    and release of pyacts give the same event. Raises ImportError without pyacts, ValueError for a number out of range.
    """
    if not 0.0 <= pile_up < 10_000.0 or beam.hard_particles < 0 or not 0.0 <= beam.displaced_fraction <= 1.0:
        raise ValueError(
            f"pile_up {pile_up:g}, hard_particles {beam.hard_particles} or displaced_fraction"
            f" {beam.displaced_fraction:g} is out of range; use a pile_up of at least 0 and below 10,000,"
            " hard_particles of 0 or more, a displaced_fraction of 0 to 1"
        )
    start = draw_particles(rng, pile_up=pile_up, beam=beam)
    with tempfile.TemporaryDirectory(prefix="exatrkx-cells-") as folder:
        _simulator().run(start, seed=int(rng.integers(2**31)), folder=folder)
        return _simulator().read(Path(folder), start)


class _Simulator:
    """The detector with its modules' places in space."""

    def __init__(self) -> None:
        self.acts = Acts(detector := generic_detector())
        self.fatras = importlib.import_module("acts.fatras")
        self.json = importlib.import_module("acts.examples.json")
        self.ids = detector.ids
        surfaces = self.acts.geometry.geoIdSurfaceMap()
        by_id = {name.value: surface for name, surface in surfaces.items()}
        context = self.acts.acts.GeometryContext.dangerouslyDefaultConstruct()
        frames = [by_id[number].localToGlobalTransform(context) for number in detector.ids.tolist()]
        self.centre = np.array([[frame.translation[axis] for axis in range(3)] for frame in frames])
        # The first two columns of the rotation are the directions of the local axes.
        self.axes = np.array([[[frame.rotation[row, axis] for row in range(3)] for axis in (0, 1)] for frame in frames])
        self.surfaces = surfaces

    def run(self, start: Start, *, seed: int, folder: str) -> None:
        """Simulate the particles, and let ACTS write its files into `folder`."""
        sequence = self.acts.examples.Sequencer(events=1, numThreads=1, logLevel=self.acts.quiet, trackFpes=False)
        for algorithm in self._algorithms(start, seed):
            sequence.addAlgorithm(algorithm)
        for writer in self._writers(folder):
            sequence.addWriter(writer)
        sequence.run()

    def _algorithms(self, start: Start, seed: int) -> tuple[Any, ...]:
        """Return the source of the particles, the simulation and the digitization, in their order."""
        examples, quiet = self.acts.examples, self.acts.quiet
        randoms = examples.RandomNumbers(seed=seed)
        simulation = examples.FatrasSimulation(
            level=quiet,
            inputParticles="particles",
            outputParticles="simulated",
            outputSimHits="hits",
            randomNumbers=randoms,
            trackingGeometry=self.acts.geometry,
            magneticField=self.acts.field,
            generateHitsOnSensitive=True,
            emScattering=True,
            emEnergyLossIonisation=True,
            emEnergyLossRadiation=True,
            emPhotonConversion=True,
        )
        digitization = examples.DigitizationAlgorithm(
            level=quiet,
            digitizationConfigs=self.json.readDigiConfigFromJson(str(DIGITIZATION_FILE)),
            surfaceByIdentifier=self.surfaces,
            randomNumbers=randoms,
            inputSimHits="hits",
            doMerge=True,
            mergeCommonCorner=True,
            outputMeasurements="measurements",
            outputMeasurementSubset="subset",
            outputClusters="clusters",
            outputMeasurementParticlesMap="measurement_particles",
            outputMeasurementSimHitsMap="measurement_hits",
            outputParticleMeasurementsMap="particle_measurements",
            outputSimHitMeasurementsMap="hit_measurements",
        )
        return _source(self.acts, lambda: self._particles(start)), simulation, digitization

    def _writers(self, folder: str) -> tuple[Any, ...]:
        """Return the writers of cells with measurements, of hits and of particles."""
        examples, quiet = self.acts.examples, self.acts.quiet
        return (
            examples.CsvMeasurementWriter(
                level=quiet,
                inputMeasurements="measurements",
                inputClusters="clusters",
                inputMeasurementSimHitsMap="measurement_hits",
                outputDir=folder,
            ),
            examples.CsvSimHitWriter(level=quiet, inputSimHits="hits", outputDir=folder, outputStem="hits"),
            examples.CsvParticleWriter(
                level=quiet, inputParticles="simulated", outputDir=folder, outputStem="particles"
            ),
        )

    def _particles(self, start: Start) -> Any:  # noqa: ANN401 - a container of ACTS
        acts, examples = self.acts.acts, self.acts.examples
        box = examples.SimParticleContainer()
        across, along = 1.0 / np.cosh(start.eta), np.tanh(start.eta)
        directions = np.stack([across * np.cos(start.phi), across * np.sin(start.phi), along], axis=1).tolist()
        momenta = (start.pt * np.cosh(start.eta)).tolist()
        kinds = zip(start.vertex.tolist(), start.species.tolist(), start.charge.tolist(), strict=True)
        for number, (vertex, species, charge) in enumerate(kinds):
            barcode = self.fatras.Barcode()
            barcode.vertexPrimary, barcode.particle = vertex + 1, number + 1
            particle = examples.SimParticle(barcode, getattr(acts.PdgParticle, SPECIES[species][charge > 0]))
            particle.fourPosition = acts.Vector4(*start.position[number].tolist(), 0.0)
            particle.direction = acts.Vector3(*directions[number])
            particle.absoluteMomentum = momenta[number]
            box.insert(particle)
        return box

    def read(self, folder: Path, start: Start) -> CellEvent:
        """Read the files that ACTS wrote into `folder`."""
        cells, measurements = _read(folder, "cells", _CELLS), _read(folder, "measurements", _MEASUREMENTS)
        hits, rows = _read(folder, "hits", _HITS), _read(folder, "particles", _PARTICLES)
        links = _read(folder, "measurement-simhit-map", _LINKS)
        links = links[np.argsort(links["measurement_id"], kind="stable")]
        hits = hits[links["hit_id"]]
        names = np.unique(_columns(rows, _BARCODE), axis=0, return_inverse=True)
        owner = _owners(_columns(hits, _BARCODE), names[0])
        # A hit of a particle that Fatras dropped belongs to nobody, and so does its measurement.
        known = owner >= 0
        hits, owner, measured = hits[known], owner[known], links["measurement_id"][known]
        particles = _particles_of(rows[np.argsort(names[1].reshape(-1))], start)
        passages = self._passages(hits, owner, measured, particles)
        truth = Truth(
            geometry_ids=measurements["geometry_id"].astype(np.int64),
            local=_columns(measurements, ("local0", "local1")),
            passages=passages,
            particles=particles,
        )
        return CellEvent(cells=_cells(cells, passages), truth=truth)

    def _passages(self, hits: _Rows, owner: Int64, measured: Int64, particles: Particles) -> Passages:
        module = np.searchsorted(self.ids, hits["geometry_id"].astype(np.int64))
        apart = _columns(hits, ("tx", "ty", "tz")) - self.centre[module]
        # A module changes the momentum on its plane: this is the momentum after it.
        momentum = _columns(hits, ("tpx", "tpy", "tpz")) + _columns(hits, ("deltapx", "deltapy", "deltapz"))
        size = np.linalg.norm(momentum, axis=1)
        return Passages(
            measurement=measured,
            particle=owner,
            local=np.einsum("hkj,hj->hk", self.axes[module], apart),
            phi=np.arctan2(momentum[:, 1], momentum[:, 0]),
            theta=np.arccos(momentum[:, 2] / size),
            qop=particles.charge[owner] / size,
            time=np.asarray(hits["tt"]),
        )


def _source(acts: Acts, fill: Callable[[], Any]) -> Any:  # noqa: ANN401 - an algorithm of ACTS
    """Return the algorithm that gives the particles; its class can exist only once pyacts is imported."""
    examples = acts.examples
    algorithm: Any = examples.IAlgorithm

    class Source(algorithm):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("source", acts.quiet)
            self.put = examples.WriteDataHandle(self, examples.SimParticleContainer, "particles")
            self.put.initialize("particles")

        def execute(self, context: object) -> object:
            self.put(context, fill())
            return examples.ProcessCode.SUCCESS

    return Source()


def _read(folder: Path, name: str, columns: dict[str, str]) -> _Rows:
    """Return the columns of one file as a structured array, `[rows]`."""
    path = folder / f"event000000000-{name}.csv"
    with path.open() as lines:
        header = lines.readline().strip().split(",")
        places = [header.index(column) for column in columns]
        body = lines.readlines()
    kinds = np.dtype(list(columns.items()))
    if not body:
        return np.empty(0, dtype=kinds)
    return np.atleast_1d(np.loadtxt(body, delimiter=",", dtype=kinds, usecols=places))


def _columns(rows: _Rows, names: Any) -> NDArray[Any]:  # noqa: ANN401 - any iterable of names
    return np.stack([rows[name] for name in names], axis=1)


def _owners(barcodes: Int64, known: Int64) -> Int64:
    """Return the row in `known` of each barcode, or -1."""
    together, number = np.unique(np.concatenate([known, barcodes]), axis=0, return_inverse=True)
    number = number.reshape(-1)
    row = np.full(len(together), -1, dtype=np.int64)
    row[number[: len(known)]] = np.arange(len(known))
    owners: Int64 = row[number[len(known) :]]
    return owners


def _particles_of(rows: _Rows, start: Start) -> Particles:
    momentum = _columns(rows, ("px", "py", "pz"))
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    generated = rows["particle_id_gen"] == 0
    return Particles(
        vertex=rows["particle_id_pv"] - 1,
        generated=generated,
        displaced=generated & (start.displaced[rows["particle_id_part"] - 1] > 0),
        charge=rows["q"].astype(np.int64),
        pt=pt,
        phi=np.arctan2(momentum[:, 1], momentum[:, 0]),
        eta=np.arcsinh(momentum[:, 2] / np.maximum(pt, 1e-9)),
        position=_columns(rows, ("vx", "vy", "vz")),
    )


def _cells(rows: _Rows, passages: Passages) -> Cells:
    """Return the cells; charges of several particles in one cell are added, as a sensor does."""
    positions = _columns(rows, ("geometry_id", "measurement_id", "channel0", "channel1")).astype(np.int64)
    positions, number = np.unique(positions, axis=0, return_inverse=True)
    value: Float64 = np.zeros(len(positions))
    np.add.at(value, number.reshape(-1), rows["value"])
    measured = positions[:, 1]
    count = np.bincount(passages.measurement, minlength=1 + measured.max(initial=0))
    time = np.bincount(passages.measurement, passages.time, len(count)) / np.maximum(count, 1)
    return Cells(
        positions=positions, properties=np.stack([time[measured] / NANOSECOND, value], axis=1).astype(np.float32)
    )


@lru_cache(maxsize=1)
def _simulator() -> _Simulator:
    return _Simulator()
