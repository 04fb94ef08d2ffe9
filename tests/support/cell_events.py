"""Events of cells: a small simulated one, made once in a process, and ones written by hand."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from exatrkx_hpc.traccc.cells import Cells
from exatrkx_hpc.traccc.simulation.cells import simulate_cells
from exatrkx_hpc.traccc.simulation.particles import Beam
from exatrkx_hpc.traccc.simulation.truth import CellEvent

#: The first pixel module of the innermost barrel layer, a long strip module, and an ID that no module has.
PIXELS = (8 << 56) | (2 << 36) | (1 << 8)
LONG_STRIPS = (17 << 56) | (2 << 36) | (1 << 8)
NOWHERE = (8 << 56) | (3 << 36) | (1 << 8)


@lru_cache(maxsize=4)
def small_event(*, particles: int = 12, seed: int = 5) -> CellEvent:
    """Return an event of one collision: 12 particles leave about 500 cells."""
    beam = Beam(hard_particles=particles, max_eta=2.0, min_pt=0.8)
    return simulate_cells(np.random.default_rng(seed), pile_up=0.0, beam=beam)


def cells_of(*rows: tuple[int, int, int] | tuple[int, int, int, float]) -> Cells:
    """Return cells from (geometry id, channel0, channel1) and a value, 1 unless it is given."""
    positions = [(row[0], 0, row[1], row[2]) for row in rows]
    properties = [(0.0, row[3] if len(row) > 3 else 1.0) for row in rows]
    return Cells(
        positions=np.array(positions, dtype=np.int64).reshape(-1, 4),
        properties=np.array(properties, dtype=np.float32).reshape(-1, 2),
    )


def chosen(cells: Cells, rows: np.ndarray | slice) -> Cells:
    """Return some of the cells, or all in another order."""
    return Cells(positions=cells.positions[rows], properties=cells.properties[rows])
