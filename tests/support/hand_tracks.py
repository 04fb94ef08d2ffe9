"""Tracks and a truth of cells, written by hand."""

from __future__ import annotations

import numpy as np

from exatrkx_hpc.traccc.simulation.truth import Particles, Passages, Truth
from exatrkx_hpc.traccc.tracks import Tracks

HITS = 8
N_PARTICLES = 4


def truth(*, pt=(2.0, 2.0, 2.0, 0.5), shared: bool = False) -> Truth:
    """Return four particles with eight measurements each, one on a module; the last has a low pT.

    The first measurement is also one of the second particle's if `shared`.
    """
    n = N_PARTICLES * HITS
    particle, measurement = np.repeat(np.arange(N_PARTICLES), HITS), np.arange(n)
    if shared:
        particle, measurement = np.append(particle, 1), np.append(measurement, 0)
    order = np.argsort(measurement, kind="stable")
    particle, measurement = particle[order], measurement[order]
    local = np.column_stack([np.arange(n) * 0.01, np.zeros(n)])
    return Truth(
        geometry_ids=measurement_module(np.arange(n)),
        local=local,
        passages=Passages(
            measurement=measurement,
            particle=particle,
            local=local[measurement],
            phi=np.full(len(measurement), 3.1),
            theta=np.full(len(measurement), 1.5),
            qop=np.full(len(measurement), 0.5),
            time=np.zeros(len(measurement)),
        ),
        particles=Particles(
            vertex=np.zeros(N_PARTICLES, dtype=np.int64),
            generated=np.ones(N_PARTICLES, dtype=np.bool_),
            displaced=np.zeros(N_PARTICLES, dtype=np.bool_),
            charge=np.ones(N_PARTICLES, dtype=np.int64),
            pt=np.array(pt),
            phi=np.zeros(N_PARTICLES),
            eta=np.zeros(N_PARTICLES),
            position=np.zeros((N_PARTICLES, 3)),
        ),
    )


def measurement_module(measurement: np.ndarray) -> np.ndarray:
    return 1000 + measurement % HITS


def tracks(*members: list[int], offset=(0.0, 0.0, 0.0, 0.0, 0.0)) -> Tracks:
    """Return tracks of these measurements, whose parameters are the true ones and an offset, with the variance 1e-4."""
    index = np.array([number for track in members for number in track], dtype=np.int64)
    lengths = np.array([len(track) for track in members])
    first = np.cumsum(lengths) - lengths
    local = np.column_stack([index * 0.01, np.zeros(len(index))])
    parameters = np.column_stack(
        [
            np.ones((len(lengths), 2)),
            local[first] + offset[:2],
            np.tile([3.1 + offset[2], 1.5 + offset[3], 0.5 + offset[4], 0.0], (len(lengths), 1)),
        ]
    )
    return Tracks(
        parameters=parameters.astype(np.float32),
        lengths=lengths,
        measurements=np.column_stack([local, np.zeros((len(index), 4))]).astype(np.float32),
        covariances=np.tile(1e-4 * np.eye(5).reshape(-1), (len(index), 1)).astype(np.float32),
        geometry_ids=measurement_module(index),
    )
