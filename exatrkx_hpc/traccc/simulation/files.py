"""An event of cells and its truth as files: the CSV file of the public client, and a numpy archive beside it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from exatrkx_hpc.traccc.cells import POSITIONS, PROPERTIES, Cells
from exatrkx_hpc.traccc.simulation.cells import DEFAULT_BEAM, DEFAULT_PILE_UP, simulate_cells
from exatrkx_hpc.traccc.simulation.particles import Beam
from exatrkx_hpc.traccc.simulation.truth import Particles, Passages, Truth

_HEADER = ",".join((*POSITIONS, *PROPERTIES))
#: The folder of the truth, in that of the events.
TRUTH_FOLDER = "truth"
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


def truth_of(event: Path) -> Path:
    """Return the path of the truth of the event at `event`."""
    return event.parent / TRUTH_FOLDER / f"{event.stem}.npz"


def write_events(
    folder: Path,
    *,
    events: int,
    pile_up: float = DEFAULT_PILE_UP,
    beam: Beam = DEFAULT_BEAM,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `folder/evt_000000-cells.csv` ... and the truth in `folder/truth/`, each file atomically.

    The same numbers and release of pyacts give the same files; with a larger `events`, the first files stay the same.
    `on_progress(stage, done, total)` is called after each event. Raises ImportError, OSError, ValueError.
    """
    (folder / TRUTH_FOLDER).mkdir(parents=True, exist_ok=True)
    for number in range(events):
        event = simulate_cells(np.random.default_rng([seed, number]), pile_up=pile_up, beam=beam)
        path = folder / f"evt_{number:06d}-cells.csv"
        # The truth comes first, so that every event that is there has its truth.
        _write_whole(truth_of(path), truth_as_npz(event.truth))
        _write_whole(path, cells_as_csv(event.cells))
        if on_progress:
            on_progress("events", number + 1, events)


def _write_whole(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
