"""Every reader against thousands of damaged files: whatever its parser does, what comes out is one line of input error.

Each change is made from a seed, so a failure comes again. The reader also must not hang: the test has a deadline.
"""

from __future__ import annotations

import gzip
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from runs import events_of, labels_text, part_bytes, part_file, read_labels, read_part

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.scores import score_results
from exatrkx_hpc.tracking.simulation.synthetic import write_events
from exatrkx_hpc.work.events.convert import events_to_json, json_to_events
from exatrkx_hpc.work.events.source import Reader, find_events, read_event
from exatrkx_hpc.work.events.writing import event_writer
from exatrkx_hpc.work.results.tables import read_tensor
from exatrkx_hpc.work.run.run import run_clients

pytestmark = pytest.mark.slow


HITS = np.random.default_rng(0).uniform(0.01, 0.3, size=(40, 3)).astype(np.float32)
#: Bytes that parsers care about more than about others.
SIGNS = b"\0\n\r\t ,;.:-+eEnaifNI0129xX\"'()[]{}<>=\\/\x7f\x80\xff\xfe\xef\xbb\xbf"


class Target(NamedTuple):
    """A whole file, what reads it, and how many times it is damaged."""

    file: Path
    read: Callable[[], object]
    times: int


def _event(tmp_path: Path, form: str, times: int) -> Target:
    folder = tmp_path / form
    folder.mkdir()
    with event_writer(folder, form) as write:
        write("evt_0", HITS)
    return Target(folder / f"evt_0.{form}", lambda: read_event(folder / f"evt_0.{form}"), times)


def _zipped(tmp_path: Path) -> Target:
    file = tmp_path / "evt_0.npz"
    np.savez_compressed(file, hits=HITS, other=HITS)
    return Target(file, lambda: read_event(file), 3000)


def _parquet(tmp_path: Path) -> Target:
    pytest.importorskip("pyarrow")
    folder = tmp_path / "parquet"
    folder.mkdir()
    with event_writer(folder, "parquet") as write:
        write("evt_0", HITS)
        write("evt_1", HITS[:7])

    def read() -> None:
        reader = Reader()
        try:
            for event in find_events(folder):
                reader.read(event)
        finally:
            reader.close()

    return Target(folder / "events.parquet", read, 1500)


def _part(tmp_path: Path) -> Target:
    pytest.importorskip("pyarrow")
    file = tmp_path / part_file("a")
    file.write_bytes(part_bytes([("a", np.arange(50)), ("b", np.arange(9))]))
    return Target(file, lambda: (events_of(file), read_part(file)), 1500)


def _labels(tmp_path: Path) -> Target:
    file = tmp_path / "evt_0.csv"
    file.write_text(labels_text(np.arange(-1, 80)))
    return Target(file, lambda: read_labels(file), 3000)


def _json(tmp_path: Path) -> Target:
    (tmp_path / "csv").mkdir()
    with event_writer(tmp_path / "csv", "csv") as write:
        write("evt_0", HITS[:9])
        write("evt_1", HITS[:2])
    file = tmp_path / "x.json"
    events_to_json(tmp_path / "csv", file, tensor="FEATURES")

    def read() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        json_to_events(file, tmp_path / "out", tensor="FEATURES")

    return Target(file, read, 1500)


def _truth(tmp_path: Path) -> Target:
    write_events(tmp_path, events=1, tracks=4)
    (tmp_path / "labels").mkdir()
    hits = len(read_event(tmp_path / "evt_000000.csv").tensors["hits"])
    (tmp_path / "labels" / "evt_000000.csv").write_text(labels_text(np.arange(hits) // 5))
    return Target(tmp_path / "truth" / "evt_000000.csv", lambda: score_results(tmp_path / "labels", tmp_path), 300)


def _tensor(tmp_path: Path) -> Target:
    file = tmp_path / "edges.csv"
    file.write_text("1,2,3,4\n2,3,4,5.000e+00\n")
    return Target(file, lambda: read_tensor(file, datatype="INT64", shape=(2, -1)), 3000)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "csv": lambda tmp_path: _event(tmp_path, "csv", 3000),
    "npy": lambda tmp_path: _event(tmp_path, "npy", 3000),
    "npz": lambda tmp_path: _event(tmp_path, "npz", 3000),
    "npz-compressed": _zipped,
    "parquet": _parquet,
    "part": _part,
    "labels": _labels,
    "json": _json,
    "truth": _truth,
    "tensor": _tensor,
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the file with one change: a byte that is another, lost, doubled or new, or an end that is missing."""
    place, way = rng.randrange(len(data)), rng.randrange(12)
    other = bytes([rng.choice(SIGNS) if rng.random() < 0.7 else rng.randrange(256)])
    if way == 0:
        return data[:place] + data[place + 1 :]
    if way == 1:
        return data[:place] + other + data[place:]
    if way == 2:
        return data[:place]
    return data[:place] + other + data[place + 1 :]


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("default")  # a warning is no error here: what the parser says to stderr is its own affair
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_an_input_error_or_none(tmp_path: Path, name: str) -> None:
    target = TARGETS[name](tmp_path)
    data, rng = target.file.read_bytes(), random.Random(name)
    target.read()
    ends: Counter[str] = Counter()
    until = time.monotonic() + 60  # on a machine that is busy fewer must do
    for number in range(target.times):
        broken = damaged(data, rng)
        target.file.write_bytes(broken)
        try:
            target.read()
            ends["read"] += 1
        except InputError as error:
            ends["refused"] += 1
            message = str(error)
            assert "\n" not in message and len(message) < 1000 and "Traceback" not in message, (number, broken)
        except BaseException as error:
            pytest.fail(f"damage {number} of {name}: {error!r} from {broken[:200]!r}")
        if time.monotonic() > until:
            break
    assert ends["refused"] > 20, ends


def test_deep_and_large_files_are_refused_at_little_cost(tmp_path: Path) -> None:
    deep = b"(" * 9000
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 3), }"
    npy = b"\x93NUMPY\x01\x00"
    for name, data in {
        "deep.npy": npy + len(deep).to_bytes(2, "little") + deep,
        "large.npy": npy + (len(header) + 1).to_bytes(2, "little") + header + b"\n",
        "long.npy": b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f" + header,
        "new.npy": b"\x93NUMPY\x09\x00" + b"\xff\xff" + header,
        "bomb.csv": b"1" * 1_000_000,
        "packed.csv": gzip.compress(b"1,2,3\n", mtime=0),
        "none.npz": b"PK\x05\x06" + b"\0" * 18,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_event(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


#: The header of a whole file of 60 hits, without its first brace: numpy's own parser of it raises a SyntaxError.
BRACE_LOST = b"\x93NUMPY\x01\x00v\x00 'descr': '<f4', 'fortran_order': False, 'shape': (60, 3), }".ljust(127) + b"\n"


@pytest.mark.parametrize("form", ["csv", "npy", "npz", "parquet"])
def test_damaged_events_end_no_run(settings, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    events = tmp_path / "events"
    events.mkdir()
    with event_writer(events, form) as write:
        for number in range(30):
            write(f"evt_{number}", HITS + np.float32(number / 1e4))
    broken = 8
    if form == "parquet":
        # The pages of z, behind those of the names, which stay: they tell which events there are.
        import pyarrow.parquet as pq

        file = events / "events.parquet"
        column = pq.ParquetFile(file).metadata.row_group(0).column(3)
        data = bytearray(file.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + 40] = b"\xff" * 40
        file.write_bytes(bytes(data))
        broken = 30
    else:
        for number in range(broken):
            file = events / f"evt_{number}.{form}"
            data = {"csv": b"\xff\xfe", "npy": BRACE_LOST + HITS.tobytes(), "npz": file.read_bytes()[:-99]}[form]
            file.write_bytes(data)
    report = run_clients(settings(events=events, workers=1))
    assert (report.events, report.done, report.failures) == (30, 30 - broken, broken) and report.stopped is None
    assert {failed.kind for failed in report.failed} == {"input"}, "no worker died of it"
    assert all("\n" not in failed.reason and str(events) in failed.reason for failed in report.failed)
    # The next run holds the ledger against the folder, and reads what changed: it goes on as well.
    again = run_clients(settings(events=events, retry_failed=True))
    assert (again.done, again.failures, again.stopped) == (30 - broken, broken, None)
