"""The measurements of a scan on disk: one file per repetition, written atomically, and one table of all."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from exatrkx_hpc.base.errors import ConfigError, InputError, OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.readable import one_line

Kind = Literal["service", "direct"]
TABLE: Final = "bench.csv"
PARQUET: Final = "bench.parquet"
_FACTS: Final = "bench.json"
_POINTS: Final = "points"


@dataclass(frozen=True, kw_only=True, order=True)
class Point:
    """One measured configuration: `servers`, each with `instances` of each model, at `concurrency` requests.

    `direct` has no server: `instances` processes run the pipeline themselves, and `concurrency` is the same number.
    """

    kind: Kind = "service"
    servers: int
    instances: int
    concurrency: int

    @property
    def name(self) -> str:
        """A name for files and messages, such as `service-2x1x8`."""
        return f"{self.kind}-{self.servers}x{self.instances}x{self.concurrency}"

    def __str__(self) -> str:
        if self.kind == "direct":
            return f"direct, {self.instances} process(es)"
        return f"{self.servers} server(s) x {self.instances} instance(s), {self.concurrency} in flight"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One repetition of a point.

    Latencies are in milliseconds; `queue_ms` to `network_ms` add up to `mean_ms`. Utilisations are shares (0 to 1).
    `calls` is perf_analyzer's kind of calls. `members` is each server's share of the requests, as `NAME=SHARE`
    separated by blanks. `load_average` is that of this machine before the repetition, `began` the start time in UTC.
    Unknown values are nan or empty.
    """

    kind: Kind
    servers: int
    instances: int
    concurrency: int
    repetition: int
    events_per_s: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float = math.nan
    input_ms: float = math.nan
    compute_ms: float = math.nan
    output_ms: float = math.nan
    network_ms: float = math.nan
    cpu_utilisation: float = math.nan
    gpu_utilisation: float = math.nan
    members: str = ""
    model: str = ""
    load_average: float = math.nan
    began: str = ""
    exatrkx_hpc: str = ""
    triton: str = ""
    perf_analyzer: str = ""
    calls: str = ""

    @property
    def point(self) -> Point:
        """The point of this repetition."""
        return Point(kind=self.kind, servers=self.servers, instances=self.instances, concurrency=self.concurrency)


COLUMNS: Final = tuple(column.name for column in dataclasses.fields(Row))
_NUMBERS: Final = {column.name for column in dataclasses.fields(Row) if column.type == "float"}
_ALWAYS: Final = {"events_per_s", "mean_ms", "p50_ms", "p95_ms", "p99_ms"}
#: Columns that tables of earlier versions do not have.
_LATER: Final = {"calls"}
_COUNTS: Final = {column.name for column in dataclasses.fields(Row) if column.type == "int"}


class Store:
    """The folder of one scan. A new scan in the same folder reuses the finished repetitions of a killed one."""

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        """Create or reopen `folder`; `facts` are common to all its figures.

        Raises ConfigError when it has a scan with other facts, InputError when one of its files is damaged,
        OutputError when it cannot be written.
        """
        self.folder = folder
        try:
            (folder / _POINTS).mkdir(parents=True, exist_ok=True)
            _take_up(folder / _FACTS, facts)
        except OSError as error:
            raise _unusable(folder, error) from error
        self._rows = {(row.point, row.repetition): row for row in _read_points(folder)}

    def rows(self, point: Point) -> tuple[Row, ...]:
        """Return the repetitions of a point, in order."""
        return tuple(row for (place, _), row in sorted(self._rows.items(), key=lambda one: one[0][1]) if place == point)

    def report(self, point: Point, repetition: int) -> Path:
        """Return the path of perf_analyzer's CSV."""
        return self.folder / _POINTS / f"{point.name}-{repetition}.csv"

    def add(self, row: Row) -> None:
        """Store a repetition and rewrite the table; raises OutputError on a write error."""
        path = self.report(row.point, row.repetition).with_suffix(".json")
        try:
            write_whole(path, json.dumps(nulls(dataclasses.asdict(row)), indent=2) + "\n")
            self._rows[row.point, row.repetition] = row
            write_table(self.folder, sorted(self._rows.values(), key=lambda one: (one.point, one.repetition)))
        except OSError as error:
            raise _unusable(self.folder, error) from error


def measured(folder: Path) -> dict[Point, int]:
    """Return the number of repetitions of each point in the folder of a scan, which may be missing."""
    return dict(Counter(row.point for row in _read_points(folder)))


def write_table(folder: Path, rows: Iterable[Row]) -> None:
    """Write the rows atomically as `bench.csv`, and as `bench.parquet` if pyarrow is installed."""
    values = [dataclasses.asdict(row) for row in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({name: _shown(value) for name, value in row.items()} for row in values)
    write_whole(folder / TABLE, text.getvalue())
    with contextlib.suppress(ImportError):  # also raised by pyarrow 26 with numpy 1
        write_whole(folder / PARQUET, _as_parquet(values))


def _as_parquet(values: Sequence[Mapping[str, object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    kept = io.BytesIO()
    parquet.write_table(pyarrow.table({name: [row[name] for row in values] for name in COLUMNS}), kept)
    return kept.getvalue()


def read_table(path: Path) -> tuple[Row, ...]:
    """Return the rows of a `bench.csv`, or of the one in the folder `path`; raises InputError without valid rows."""
    table = path / TABLE if path.is_dir() else path
    try:
        lines = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
        rows = tuple(_row(line) for line in lines)
    except FileNotFoundError as error:
        raise InputError(f"{table} does not exist; create it with 'exatrkx-hpc bench --out FOLDER'") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{table} is not a table of 'exatrkx-hpc bench' ({_named(error)})") from error
    if not rows:
        raise InputError(f"{table} has no measurements yet; resume the scan with 'exatrkx-hpc bench'")
    return rows


def _row(line: Mapping[str, object]) -> Row:
    """Convert a line of texts, numbers or nulls to a row."""
    values: dict[str, object] = {}
    for name in COLUMNS:
        value = line.get(name, "") if name in _LATER else line[name]
        if name in _NUMBERS:
            values[name] = _number(name, value)
        else:
            values[name] = int(str(value)) if name in _COUNTS else str(value)
    if values["kind"] not in ("service", "direct"):
        raise ValueError(f"kind {values['kind']!r}")
    return Row(**values)  # type: ignore[arg-type]


def _number(name: str, value: object) -> float:
    """Return a figure, nan for an optional empty one; raise ValueError if it is missing, infinite or below 0."""
    if value in (None, "") and name not in _ALWAYS:
        return math.nan
    figure = float(str(value if value not in (None, "") else math.nan))
    if not 0.0 <= figure < math.inf:
        raise ValueError(f"{name} {value!r}")
    return figure


def _read_points(folder: Path) -> Iterable[Row]:
    for path in sorted((folder / _POINTS).glob("*.json")):
        try:
            yield _row(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} cannot be used ({_named(error)}); remove it to measure this repetition again"
            ) from error


def _take_up(path: Path, facts: Mapping[str, object]) -> None:
    wanted = json.loads(json.dumps(facts))
    if not path.exists():
        write_whole(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = dict(json.loads(path.read_text()))
        differ = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a file of 'exatrkx-hpc bench'; choose another --out") from error
    if differ:
        first = differ[0]
        raise ConfigError(
            f"{path.parent} holds a scan with a different {first} ({found.get(first)}, now {wanted.get(first)}), so "
            "the results cannot be compared; choose another --out"
        )


def nulls(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values for JSON: None for nan."""
    return {name: None if isinstance(one, float) and math.isnan(one) else one for name, one in values.items()}


def _shown(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _named(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _unusable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} cannot be written: {error.strerror}; check permissions and free space, or choose another --out"
    )
