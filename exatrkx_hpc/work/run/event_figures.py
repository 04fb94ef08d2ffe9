"""Figures of each event: its counts, and the time of each stage.

The ledger stores both; OUT/times.csv repeats the times. The file is written from the ledger, so it has exactly one row
per done event, also after kills and resumed runs.
"""

from __future__ import annotations

import csv
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.ledger.ledger import Ledger

_ROWS: Final = """
SELECT events.key, name, stages, seconds FROM events LEFT JOIN extras ON extras.key = events.key
WHERE state = 'done' ORDER BY events.key
"""


class StageMeans:
    """Sums the seconds of each stage over many events."""

    def __init__(self) -> None:
        """Start without events."""
        self._sums: Counter[str] = Counter()
        self._number = 0

    def add(self, stages: Mapping[str, float]) -> None:
        """Add the seconds of each stage of one event; an event without known stages does not count."""
        if stages:
            self._sums.update(stages)
            self._number += 1

    def means_ms(self) -> dict[str, float]:
        """Return the mean milliseconds of each stage; {} without events."""
        return {stage: 1000.0 * seconds / self._number for stage, seconds in self._sums.items()}


def counts_of(ledger: Ledger) -> Counter[str]:
    """Return the summed counts of all done events; events from older versions of the program have no counts."""
    query = "SELECT counts FROM events JOIN extras ON extras.key = events.key WHERE state = 'done' AND counts NOT NULL"
    found: Counter[str] = Counter()
    with ledger.sqlite_errors():
        for (counts,) in ledger.db.execute(query):
            found.update(json.loads(counts))
    return found


def write_times(path: Path, ledgers: Sequence[Ledger]) -> None:
    """Write the times of every done event of the ledgers atomically, in natural order of the event names.

    Times are seconds seen by the client, retries included: of the requests of each stage, and in total from the first
    request to the result. A stage without a known time has an empty cell. Raises OutputError on a write error.
    """
    stages = [stage for stage in ledgers[0].facts.get("stages", "").split(",") if stage]
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["event", *stages, "total"])
            for _, name, spent, total in heapq.merge(*(_rows(ledger) for ledger in ledgers)):
                known = json.loads(spent) if spent else {}
                seconds = (*(known.get(stage) for stage in stages), total)
                table.writerow([name, *("" if one is None else f"{one:.6f}" for one in seconds)])
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; check permissions and free space") from error


def _rows(ledger: Ledger) -> Iterator[tuple[bytes, str, str | None, float]]:
    with ledger.sqlite_errors():
        yield from ledger.db.execute(_ROWS)
