"""Events that do something to the server that takes them, and the right answer to every event."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exatrkx_hpc.work.workloads.hits_csv import parse_csv

#: The values of model.py, which runs inside Triton and imports nothing of ours.
MARK = 0.8125
KINDS = {"kills": 0.125, "hangs": 0.25, "exhausts": 0.375, "long": 0.5}


def plant(folder: Path, kind: str, *, number: int = 1) -> tuple[str, ...]:
    """Turn `number` events from the middle of the folder into special ones of a kind; return their names."""
    paths = sorted(folder.iterdir())
    middle = len(paths) // 2
    chosen = paths[middle : middle + number]
    for path in chosen:
        hits = path.read_text().splitlines()
        path.write_text("\n".join([f"{MARK},{KINDS[kind]},0.5", *hits[1:]]) + "\n")
    return tuple(path.stem for path in chosen)


def right(event: Path, result: Path) -> bool:
    """Return whether a result is what the model answers for an event."""
    hits = parse_csv(event, event.read_bytes())
    labels = (np.arange(len(hits)) + np.rint(1000 * hits[:, 2])).astype(np.int64) % 97
    return result.read_text().split() == [str(label) for label in labels]
