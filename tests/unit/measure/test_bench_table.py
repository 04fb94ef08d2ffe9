"""The figures of a scan on disk: found again, refused when they do not belong together, and one tidy table."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from bench_rows import repeated, row, scan

from exatrkx_hpc.base.errors import ConfigError, InputError, OutputError
from exatrkx_hpc.measure.bench_table import COLUMNS, Point, Store, measured, read_table, write_table

FACTS = {"model": "exatrkx", "window": 5.0}
POINT = Point(servers=1, instances=1, concurrency=1)


def test_a_scan_finds_again_what_is_finished_and_nothing_of_what_was_torn(tmp_path: Path):
    store = Store(tmp_path, FACTS)
    for one in repeated(10.0, 11.0):
        store.add(one)
    # What a kill in the middle of the third repetition leaves: perf_analyzer's CSV, and a file that was not renamed.
    store.report(POINT, 3).write_text("Concurrency,Inf")
    (tmp_path / "points" / ".service-1x1x1-3.json.abc").write_text('{"kind"')
    again = Store(tmp_path, FACTS)
    assert [one.events_per_s for one in again.rows(POINT)] == [10.0, 11.0]
    assert again.rows(Point(servers=2, instances=1, concurrency=1)) == ()
    assert measured(tmp_path) == {POINT: 2}
    assert measured(tmp_path / "none") == {}


@pytest.mark.parametrize("facts", [{**FACTS, "window": 6.0}, {"model": "exatrkx"}, {**FACTS, "events": "x"}])
def test_a_scan_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, facts: dict):
    Store(tmp_path, FACTS).add(row())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds a scan with a different (window|events) .*choose another --out"):
        Store(tmp_path, facts)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_spoilt_file_is_named(tmp_path: Path):
    store = Store(tmp_path, FACTS)
    store.add(row())
    path = store.report(POINT, 1).with_suffix(".json")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"service-1x1x1-1.json cannot be used .*remove it"):
        Store(tmp_path, FACTS)
    (tmp_path / "bench.json").write_text("[1]")
    with pytest.raises(InputError, match="is not a file of 'exatrkx-hpc bench'"):
        Store(tmp_path, FACTS)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "5%", ""])
def test_a_figure_that_is_none_is_no_row_of_a_table(tmp_path: Path, value: str):
    write_table(tmp_path, [row()])
    table = tmp_path / "bench.csv"
    header, line = table.read_text().splitlines()
    cells = line.split(",")
    cells[COLUMNS.index("events_per_s")] = value
    table.write_text(f"{header}\n{','.join(cells)}\n")
    with pytest.raises(InputError, match=r"bench.csv is not a table of 'exatrkx-hpc bench' \(ValueError: "):
        read_table(tmp_path)


def test_a_table_without_the_columns_that_came_later_is_read(tmp_path: Path):
    write_table(tmp_path, [row(calls="sync")])
    lines = [line.rpartition(",")[0] for line in (tmp_path / "bench.csv").read_text().splitlines()]
    assert COLUMNS[-1] == "calls"
    (tmp_path / "bench.csv").write_text("\n".join(lines) + "\n")
    assert [one.calls for one in read_table(tmp_path)] == [""]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Store(tmp_path / "file", FACTS)


def test_the_table_has_a_row_for_each_repetition_and_comes_back(tmp_path: Path):
    rows = scan()
    write_table(tmp_path, rows)
    with (tmp_path / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert len(lines) == len(rows)
    assert lines[-1]["cpu_utilisation"] == ""
    back = read_table(tmp_path)
    # As text: what was not measured is NaN, which equals nothing.
    assert repr(back[0]) == repr(read_table(tmp_path / "bench.csv")[0])
    for one, other in zip(rows, back, strict=True):
        assert (one.point, one.repetition, one.members) == (other.point, other.repetition, other.members)
        assert other.mean_ms == pytest.approx(one.mean_ms, rel=1e-5)
        assert math.isnan(other.cpu_utilisation) == math.isnan(one.cpu_utilisation)


def test_the_parquet_table_is_the_same(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    rows = scan()
    write_table(tmp_path, rows)
    table = parquet.read_table(tmp_path / "bench.parquet")
    assert table.column_names == list(COLUMNS)
    assert table["events_per_s"].to_pylist() == [one.events_per_s for one in rows]


def test_the_table_is_complete_after_each_repetition(tmp_path: Path):
    store = Store(tmp_path, FACTS)
    for number, one in enumerate(repeated(10.0, 11.0, 12.0), start=1):
        store.add(one)
        assert len(read_table(tmp_path)) == number


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist; create it with 'exatrkx-hpc bench --out FOLDER'"),
        ("", "has no measurements yet"),
        (",".join(COLUMNS) + "\n", "has no measurements yet"),
        ("a,b\n1,2\n", "is not a table of 'exatrkx-hpc bench'"),
        (",".join(COLUMNS) + "\nservice,x\n", "is not a table of 'exatrkx-hpc bench'"),
    ],
)
def test_a_table_that_is_none_is_said_to_be_none(tmp_path: Path, text: str | None, says: str):
    if text is not None:
        (tmp_path / "bench.csv").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_table(tmp_path)
    assert "\n" not in str(error.value)
