"""Figures of each event: its counts, and the time of each stage.

They are in the ledger, and the times are told as OUT/times.csv as well.

The ledger has a row for each done event and no other, whatever was killed and gone on with, and so has the file.
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
    """Adds up the seconds of the stages of many events."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: Counter[str] = Counter()
        self._number = 0

    def add(self, stages: Mapping[str, float]) -> None:
        """Take the seconds of each stage of one event; nothing where they are not known."""
        if stages:
            self._sums.update(stages)
            self._number += 1

    def means_ms(self) -> dict[str, float]:
        """Return the mean milliseconds of each stage; {} without any event."""
        return {stage: 1000.0 * seconds / self._number for stage, seconds in self._sums.items()}


def counts_of(ledger: Ledger) -> Counter[str]:
    """Return what the results of all done events count, added up; nothing for those that an earlier program did."""
    query = "SELECT counts FROM events JOIN extras ON extras.key = events.key WHERE state = 'done' AND counts NOT NULL"
    found: Counter[str] = Counter()
    with ledger.sqlite_errors():
        for (counts,) in ledger.db.execute(query):
            found.update(json.loads(counts))
    return found


def write_times(path: Path, ledgers: Sequence[Ledger]) -> None:
    """Write the times of every done event of the ledgers, in natural order of their names; whole or as it was.

    Seconds, of the requests of each stage as the client saw them with all repeats, and from the first request to
    the result. A stage without a known time has an empty cell. Raises OutputError when it cannot be written.
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
