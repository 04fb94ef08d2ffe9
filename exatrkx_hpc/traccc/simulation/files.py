"""An event of cells and its truth as files: the CSV file of the public client, and a numpy archive beside it."""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from exatrkx_hpc.traccc.cells import POSITIONS, PROPERTIES, Cells
from exatrkx_hpc.traccc.simulation.truth import Particles, Passages, Truth

_HEADER = ",".join((*POSITIONS, *PROPERTIES))
_PARTS = {"passages": Passages, "particles": Particles}


def cells_as_csv(cells: Cells) -> bytes:
    """Return cells as the CSV file of the public client; a float32 has as many digits as it takes to read it back."""
    rows = zip(cells.positions.tolist(), cells.properties.tolist(), strict=True)
    lines = (f"{a},{b},{c},{d},{time:.9g},{value:.9g}\n" for (a, b, c, d), (time, value) in rows)
    return f"{_HEADER}\n{''.join(lines)}".encode()


def truth_as_npz(truth: Truth) -> bytes:
    """Return a truth as the bytes of an `.npz` file, whose arrays have the names of the fields."""
    arrays = {"geometry_ids": truth.geometry_ids, "local": truth.local}
    for part, kind in _PARTS.items():
        arrays |= {f"{part}.{field.name}": getattr(getattr(truth, part), field.name) for field in fields(kind)}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read_truth(path: Path) -> Truth:
    """Return the truth in a file; raises OSError, and ValueError for a file with other content."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            parts = {
                part: kind(**{field.name: held[f"{part}.{field.name}"] for field in fields(kind)})
                for part, kind in _PARTS.items()
            }
            return Truth(geometry_ids=held["geometry_ids"], local=held["local"], **parts)
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not the truth of an event of cells ({error}); generate the event again") from error
