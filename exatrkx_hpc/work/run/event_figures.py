"""What a run keeps of each event beside its labels: how many tracks, and how long each stage took.

They are in the ledger, and the times are told as OUT/times.csv as well.

The ledger has a row for each done event and no other, whatever was killed and gone on with, and so has the file.
"""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.ledger.ledger import Ledger

MIN_TRACK_HITS: Final = 3
"""A label is a track from so many hits on: that of `score`, which a worker does not load (tracking/scoring/score.py)."""

STAGE_OF: Final[Mapping[str, str]] = {
    "embed": "embedding",
    "frnn": "building",
    "filter": "filtering",
    "applyfilter": "filtering",
    "gnn": "gnn",
    "wcc": "labeling",
}
"""The stage that each model of mode `stages` belongs to, by the names of the public service's clients."""

STAGES: Final = tuple(dict.fromkeys(STAGE_OF.values()))
COLUMNS: Final = ("event", *STAGES, "total")

_ROWS: Final = """
SELECT events.key, name, stages, seconds FROM events LEFT JOIN extras ON extras.key = events.key
WHERE state = 'done' ORDER BY events.key
"""


def count_tracks(labels: NDArray[np.int64]) -> int:
    """Return how many labels of `[N]` belong to MIN_TRACK_HITS hits or more; below 0 is no track's label."""
    _, hits = np.unique(labels[labels >= 0], return_counts=True)
    return int((hits >= MIN_TRACK_HITS).sum())


def by_stage(seconds: Mapping[str, float]) -> tuple[float, ...]:
    """Return the seconds of each of STAGES, for those of each model; () unless they are the models of the stages."""
    if seconds.keys() != STAGE_OF.keys():
        return ()
    return tuple(sum(one for model, one in seconds.items() if STAGE_OF[model] == stage) for stage in STAGES)


class StageMeans:
    """Adds up the seconds of the stages of many events."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums = [0.0] * len(STAGES)
        self._number = 0

    def add(self, stages: Sequence[float]) -> None:
        """Take the seconds of each of STAGES of one event; nothing where they are not known."""
        if stages:
            self._sums = [sum(pair) for pair in zip(self._sums, stages, strict=True)]
            self._number += 1

    def means_ms(self) -> dict[str, float]:
        """Return the mean milliseconds of each stage; {} without any event."""
        return {stage: 1000.0 * one / self._number for stage, one in zip(STAGES, self._sums, strict=True) if one}


def tracks_of(ledger: Ledger) -> int:
    """Return the tracks of all done events; 0 for those that an earlier program did."""
    query = "SELECT coalesce(sum(tracks), 0) FROM events JOIN extras ON extras.key = events.key WHERE state = 'done'"
    with ledger.told():
        (tracks,) = ledger.db.execute(query).fetchone()
    return int(tracks)


def write_times(path: Path, ledgers: Sequence[Ledger]) -> None:
    """Write the times of every done event of the ledgers, in natural order of their names; whole or as it was.

    Seconds, of the request to each stage as the client saw it with all repeats, and from the first request to the
    labels. A stage without a known time has an empty cell. Raises OutputError when it cannot be written.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for _, name, stages, total in heapq.merge(*(_rows(ledger) for ledger in ledgers)):
                known = json.loads(stages) if stages else [None] * len(STAGES)
                table.writerow([name, *("" if one is None else f"{one:.6f}" for one in (*known, total))])
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; make room there") from error


def _rows(ledger: Ledger) -> Iterator[tuple[bytes, str, str | None, float]]:
    with ledger.told():
        yield from ledger.db.execute(_ROWS)
