from __future__ import annotations

import os

import numpy as np
import pytest
from parquet_events import write

from exatrkx_hpc.base.errors import InputError, MissingComponent
from exatrkx_hpc.base.process import run
from exatrkx_hpc.work.events import parquet_files
from exatrkx_hpc.work.events.parquet_files import index
from exatrkx_hpc.work.events.source import Reader, UnreadableEvent, find_events, format_of
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
RANDOM = np.random.default_rng(0)


def hits(number: int) -> np.ndarray:
    return RANDOM.normal(size=(number, 3)).astype(np.float32)


@pytest.mark.parametrize("type_", [pa.int16(), pa.uint64(), pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("group", [1, 7, 1000])
def test_each_event_is_found_with_its_rows_and_read_bit_by_bit(tmp_path, monkeypatch, type_, group):
    monkeypatch.setattr(parquet_files, "BATCH", 4)
    number = pa.types.is_integer(type_)
    given = {str(name): hits(size) for name, size in [(10, 3), (2, 9), (7, 1), (1, 25)]}
    write(tmp_path / "e.parquet", [(int(n) if number else n, h) for n, h in given.items()], type_=type_, group=group)
    stamps = list(index(tmp_path / "e.parquet", WORKLOAD))
    assert [(stamp.name, stamp.first, stamp.size) for stamp in stamps] == [
        ("10", 0, 3),
        ("2", 3, 9),
        ("7", 12, 1),
        ("1", 13, 25),
    ]
    for source in (tmp_path, tmp_path / "e.parquet"):
        events = find_events(source)
        assert format_of(source) == "parquet" and [event.name for event in events] == ["1", "2", "7", "10"]
        reader = Reader()
        for event in [*events, *events[::-1]]:
            read = reader.read(event)
            assert np.array_equal(read.tensors["hits"], given[event.name]) and read.tensors["hits"].dtype == np.float32
            assert (
                read.size == len(read.tensors["hits"]) and read.mtime_ns == (tmp_path / "e.parquet").stat().st_mtime_ns
            )
        reader.close()


def test_dictionaries_doubles_and_a_column_of_another_name(tmp_path):
    values = hits(6).astype(np.float64)
    names = pa.array(["a"] * 2 + ["b"] * 4).dictionary_encode()
    columns = {"run": names, "r": values[:, 0], "phi": values[:, 1], "z": values[:, 2]}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    events = find_events(tmp_path, column="run")
    assert [event.name for event in events] == ["a", "b"]
    assert np.array_equal(Reader().read(events[1]).tensors["hits"], values[2:].astype(np.float32))
    with pytest.raises(
        InputError, match=r"has no column 'event' \(it has: run, r, phi, z\); choose another with --event-column"
    ):
        find_events(tmp_path)


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path):
    one, two = hits(5), hits(4)
    write(tmp_path / "a.parquet", [("x", one), ("y", two)], group=2)
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "other.parquet", [("y", two), ("w", one), ("x", one)], group=100)
    reader = Reader()
    first = {event.name: reader.read(event).sha256 for event in find_events(tmp_path)}
    second = {event.name: reader.read(event).sha256 for event in find_events(tmp_path / "b")}
    assert first == {name: second[name] for name in first} and second["w"] == second["x"] != second["y"]


def test_a_reader_holds_few_row_groups(tmp_path):
    write(tmp_path / "e.parquet", [(number, hits(10)) for number in range(50)], group=10)
    reader = Reader()
    for event in find_events(tmp_path):
        reader.read(event)
    held = reader._parquet._open._groups
    assert list(held) == [48, 49] and all(len(values["hits"]) == 10 for values in held.values())


def test_the_index_of_many_events_holds_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "BATCH", 1000)
    names = np.repeat(np.arange(50_000), 2)
    columns = {"event": names, **{name: np.zeros(len(names), dtype=np.float32) for name in ("r", "phi", "z")}}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet", row_group_size=20_000)
    before = pa.total_allocated_bytes()
    largest = number = 0
    for number, stamp in enumerate(index(tmp_path / "e.parquet", WORKLOAD), start=1):
        largest = max(largest, pa.total_allocated_bytes() - before) if number % 100 == 0 else largest
        assert stamp.size == 2
    assert number == 50_000 and largest < 400_000, largest  # the column alone is 800 kB


def test_events_in_two_places(tmp_path):
    write(tmp_path / "e.parquet", [(1, hits(2)), (2, hits(2)), (1, hits(2))])
    with pytest.raises(
        InputError, match=r"the rows of an event are not contiguous \(1, …\); sort the rows by event, in one"
    ):
        find_events(tmp_path)
    write(tmp_path / "e.parquet", [(1, hits(2))])
    write(tmp_path / "f.parquet", [("1", hits(2))])
    with pytest.raises(InputError, match="are not contiguous"):
        find_events(tmp_path)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "'' in 'event' is empty"),
        (".a", "begins with a dot"),
        ("../a", "begins with a dot"),
        ("a/b", "holds a / or a NUL"),
        ("a\0", "holds a / or a NUL"),
        ("é" * 113, "is longer than 225 bytes"),
        (None, "rows without a value in 'event'"),
    ],
)
def test_names_that_no_label_file_can_have(tmp_path, name, fault):
    write(tmp_path / "e.parquet", [(name, hits(2))], type_=pa.string())
    with pytest.raises(InputError, match=fault):
        find_events(tmp_path)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (
            {"event": [1], "r": [1.0], "phi": [1.0]},
            r"has no column 'z' \(it has: event, r, phi\); workload exatrkx has the",
        ),
        ({"event": [1.5], "r": [1.0], "phi": [1.0], "z": [1.0]}, "'event' is double, not an integer or a string"),
        ({"event": [1], "r": [1], "phi": [1.0], "z": [1.0]}, "'r' is int64, not float or double"),
        ({"event": [1], "r": [[1.0]], "phi": [1.0], "z": [1.0]}, "'r' is list.*, not float or double"),
    ],
)
def test_columns_that_are_no_events(tmp_path, columns, fault):
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(InputError, match=fault) as caught:
        find_events(tmp_path)
    assert "\n" not in str(caught.value)


def test_torn_files(tmp_path):
    path = write(tmp_path / "e.parquet", [(1, hits(200))], group=1000)
    data = path.read_bytes()
    for torn in (b"", b"PAR1", data[:-20], data[: len(data) // 2]):
        path.write_bytes(torn)
        with pytest.raises(InputError, match=r"e\.parquet cannot be read as Parquet \(.*; write it again") as caught:
            find_events(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_page_that_is_torn_is_told_when_its_event_is_read(tmp_path):
    path = write(tmp_path / "e.parquet", [(1, hits(200))], group=1000)
    at = pq.ParquetFile(path).metadata.row_group(0).column(4).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * 50 + data[at + 50 :])
    (event,) = find_events(tmp_path)
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        Reader().read(event)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, UnreadableEvent)


def test_hits_that_are_not_finite_are_the_fault_of_their_event_alone(tmp_path):
    table = {"event": [1, 1, 2, 3], "r": [1.0, 1e39, 1.0, 1.0], "phi": [0.0] * 4, "z": [0.0, 0.0, 0.0, None]}
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    events, reader = find_events(tmp_path), Reader()
    with pytest.raises(InputError, match=r"e\.parquet: event 1: row 1 of hits is not finite"):
        reader.read(events[0])
    assert reader.read(events[1]).tensors["hits"].tolist() == [[1.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="event 3: row 0 of hits is not finite"):
        reader.read(events[2])


def test_a_file_that_changes_or_goes_after_it_was_indexed(tmp_path):
    path = write(tmp_path / "e.parquet", [(1, hits(2)), (2, hits(2))])
    events, reader = find_events(tmp_path), Reader()
    reader.read(events[0])
    os.utime(path, ns=(1, 1))
    with pytest.raises(UnreadableEvent, match="changed since the run began; run again"):
        reader.read(events[1])
    path.unlink()
    with pytest.raises(UnreadableEvent, match=r"cannot read .*e\.parquet: No such file"):
        reader.read(events[1])


def test_without_pyarrow_one_line_says_what_to_install(tmp_path):
    (tmp_path / "e.parquet").write_bytes(b"")
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from exatrkx_hpc.work.events import source as events\n"
        "from exatrkx_hpc.work.run import worker\n"
        "assert not [name for name in sys.modules if name.startswith('pyarrow.')]\n"
        "try: events.format_of(Path(sys.argv[1]))\n"
        f"except events.InputError.__mro__[1] as error: assert type(error).__name__ == '{MissingComponent.__name__}'"
        "; print(error)\n"
    )
    done = run([os.sys.executable, "-c", program, str(tmp_path)])
    assert done.stdout.startswith("Parquet needs pyarrow (") and "pip install 'exatrkx-hpc[parquet]'" in done.stdout
