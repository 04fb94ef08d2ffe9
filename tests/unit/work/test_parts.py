"""Labels of many events in one Parquet file: each event has one result, whatever is killed, torn or changed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes.running import fake_triton
from runs import (
    driver,
    event_of,
    events_of,
    kill_something,
    ledger_rows,
    part_bytes,
    part_file,
    read_part,
    tiny_disk,
    workers_of,
)
from waiting import until

from exatrkx_hpc.base.errors import InputError, OutputError
from exatrkx_hpc.work.results import parts
from exatrkx_hpc.work.results.parts import Part, PartWriter
from exatrkx_hpc.work.run.run import Settings, StoppedRun, run_clients
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def settings(settings):
    """Settings of a run with parts of five events."""
    return functools.partial(settings, result_format="parquet", part_events=5)


def parts_of(run_settings: Settings) -> dict[str, dict]:
    """Return the parts by their files; nothing else may lie beside them."""
    return {file.name: read_part(file) for file in sorted(run_settings.folder.iterdir())}


def part_with(run_settings: Settings, event: str) -> tuple[Path, list[str]]:
    """Return the part that has this event, and the names of all its events."""
    found = next((file, part) for file, part in parts_of(run_settings).items() if event in part)
    return run_settings.folder / found[0], list(found[1])


def assert_one_result_each(run_settings: Settings, sizes) -> int:
    """Each event is in one part, with its labels, and the ledger agrees; returns how many parts there are."""
    held = parts_of(run_settings)
    number = Counter(name for part in held.values() for name in part)
    assert number == Counter({f"evt_{event}": 1 for event in range(len(sizes))})
    for part in held.values():
        for name, labels in part.items():
            hits = sizes[int(name.removeprefix("evt_"))]
            np.testing.assert_array_equal(labels, np.where(np.arange(hits) == 0, hits, np.arange(hits) % 7))
    rows = ledger_rows(run_settings, "state, name, (SELECT name FROM parts WHERE parts.key = part)")
    assert all(state == "done" and name in held[part_file(first)] for state, name, first in rows)
    assert all(event_of(file) == next(iter(part)) for file, part in held.items())
    return len(held)


def test_labels_survive_their_part(tmp_path):
    labels = [("a", np.array([1, -(2**40)])), ("none", np.empty(0, dtype=np.int64)), ("b\udcff", np.array([7]))]
    (tmp_path / part_file("a")).write_bytes(part_bytes(labels))
    read = read_part(tmp_path / part_file("a"))
    assert {name: values.tolist() for name, values in read.items()} == {"a": [1, -(2**40)], "none": [], "b\\xff": [7]}
    assert all(values.dtype == np.int64 for values in read.values())
    assert event_of(part_file("a.b c")) == "a.b c" and event_of("part-0.parquet") is None
    (tmp_path / "torn.labels.parquet").write_bytes(part_bytes(labels)[:-9])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_part(tmp_path / "torn.labels.parquet")


def written(folder: Path, batches, meddle=lambda writer: None, **options) -> list[Part]:
    """Let a writer collect these batches of names, asking after each whether to write; return what it says."""

    async def write() -> None:
        writer = PartWriter(folder, WORKLOAD, say=said.append, **options)
        for names in batches:
            for name in names:
                writer.add(name, {"labels": np.zeros(2, dtype=np.int64)})
            meddle(writer)
            await writer.write_if_due()

    said = []
    asyncio.run(write())
    assert sorted(path.name for path in folder.iterdir()) == sorted(part_file(part.event) for part in said)
    return said


def test_a_part_is_written_after_so_many_events_hits_or_seconds(tmp_path, monkeypatch):
    assert written(tmp_path, ["ab"], events=3) == []
    said = written(tmp_path, ["ab", "cdefgh", "", "ij"], events=3)
    assert [(part.event, part.events) for part in said] == [("a", 3), ("d", 3), ("g", 3)]
    assert said[0].size == (tmp_path / part_file("a")).stat().st_size
    for limit, value in (("BYTES", 32), ("SECONDS", 0.0)):
        (tmp_path / limit).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(parts, limit, value)
            assert [part.events for part in written(tmp_path / limit, ["ab"], events=3)] == [2]


def test_a_worker_whose_coordinator_is_gone_writes_no_part(tmp_path):
    assert written(tmp_path, ["abc"], events=3, meddle=lambda writer: setattr(writer, "_parent", -1)) == []


def test_every_event_is_in_one_part_and_a_second_run_has_nothing_to_do(settings):
    sizes = [*range(60), 5000]
    run_settings = settings(sizes=sizes, workers=2, in_flight=3)
    tallies = []
    report = run_clients(run_settings, tallies.append)
    assert (report.done, report.failed, report.items) == (61, (), sum(sizes)) and sum(report.workers) == 61
    assert 61 / 11 <= assert_one_result_each(run_settings, sizes) <= 61 / 5 + 2
    assert max(tally.in_flight for tally in tallies) <= 6 and tallies[-1].done == 61
    kept = {file: file.stat().st_ino for file in run_settings.folder.iterdir()}
    assert run_clients(settings()).done_now == 0
    assert {file: file.stat().st_ino for file in run_settings.folder.iterdir()} == kept
    with pytest.raises(
        OutputError, match="was made with results parquet, but this run uses results csv; choose another -o"
    ):
        run_clients(settings(result_format="csv"))


def test_fresh_goes_from_one_format_to_the_other(settings):
    sizes = [2] * 12
    run_clients(settings(sizes=sizes))
    (settings().folder / "part-0001.parquet").write_bytes(b"of somebody else")
    assert run_clients(settings(result_format="csv", fresh=True)).done == 12
    assert sorted(file.suffix for file in settings().folder.iterdir()) == [".csv"] * 12 + [".parquet"]
    (settings().folder / "part-0001.parquet").unlink()
    assert run_clients(settings(fresh=True)).done == 12
    assert assert_one_result_each(settings(), sizes) > 1


def test_a_bad_event_is_in_no_part_and_stops_nobody(settings):
    run_settings = settings(sizes=[3] * 7)
    (run_settings.events / "evt_2.csv").write_text("nan,0,0\n")
    report = run_clients(run_settings)
    assert report.done == 6 and [one.event for one in report.failed] == ["evt_2"]
    (run_settings.events / "evt_2.csv").write_text("0,0,0\n")
    assert run_clients(settings()).done == 7
    assert assert_one_result_each(run_settings, [3, 3, 1, 3, 3, 3, 3]) > 1


def test_a_run_that_is_stopped_writes_what_it_has(settings):
    def stop(tally):
        if len(moments) > 20:
            os.kill(os.getpid(), signal.SIGTERM)
        moments.append(tally.done)

    moments = []
    with fake_triton("--delay", "0.02") as fake, pytest.raises(StoppedRun) as stopped:
        run_clients(settings(sizes=[3] * 60, server=fake.server, part_events=1000), stop)
    assert 10 < stopped.value.report.done < 60 and len(parts_of(settings())) == 1
    assert run_clients(settings(part_events=1000)).done_before == stopped.value.report.done
    assert assert_one_result_each(settings(), [3] * 60) > 1


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [Path.unlink, torn, overwritten], ids=lambda harm: harm.__name__)
def test_a_part_that_is_missing_or_torn_is_done_again(settings, harm):
    sizes = [3] * 12
    run_clients(settings(sizes=sizes))
    said = []
    part, events = part_with(settings(), "evt_0")
    harm(part)
    report = run_clients(settings(), tell=said.append)
    assert report.done_now == len(events) and f"{len(events)} results were missing or damaged" in str(said[0])
    assert assert_one_result_each(settings(), sizes) > 1


def test_what_a_killed_worker_left_is_removed(settings):
    sizes = [3] * 12
    run_clients(settings(sizes=sizes))
    labels = settings().folder
    part, (_, second, *_) = part_with(settings(), "evt_0")
    for name in (
        part_file(second),
        part_file("another"),
        f".{part_file('evt_4')}.x7a_b3c4",
        ".evt_3.csv.x7a_b3c4",
        "evt_3.csv",
    ):
        (labels / name).write_bytes(part.read_bytes())
    assert run_clients(settings()).done_now == 0
    assert assert_one_result_each(settings(), sizes) > 1


def test_the_other_events_of_a_part_are_done_again_when_one_changes_or_goes(settings):
    sizes = [3] * 12
    run_settings = settings(sizes=sizes)
    run_clients(run_settings)
    again = {*part_with(run_settings, "evt_1")[1], *part_with(run_settings, "evt_11")[1]} - {"evt_11"}
    (run_settings.events / "evt_1.csv").write_text("1,2,3\n" * 4)
    (run_settings.events / "evt_11.csv").unlink()
    report = run_clients(settings(accept_changes=True))
    assert (report.events, report.done_now, report.done) == (11, len(again), 11)
    assert assert_one_result_each(run_settings, [3, 4, *[3] * 9]) > 1


def test_the_events_of_a_killed_worker_are_not_lost(settings):
    victims = []

    def kill_one(tally):
        moments.append(tally)
        due = len(victims) < 3 and len(moments) >= 15 * (len(victims) + 1)
        if due and (living := workers_of(os.getpid())):
            victims.append(living[0])
            victims[-1].kill()

    moments, sizes = [], [5] * 60
    with fake_triton("--delay", "0.02") as fake:
        report = run_clients(settings(sizes=sizes, server=fake.server, workers=2), kill_one)
    assert len(victims) == 3 and (report.done, report.failed) == (60, ())
    assert_one_result_each(settings(), sizes)


def test_kills_at_random_moments_cost_no_result_and_double_none(settings, tmp_path):
    sizes, randomly = [*range(300)], random.Random(7)
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=sizes, server=fake.server)
        for kill in range(5):
            with driver(run_settings, tmp_path / f"log{kill}") as child:
                goal = len(list(run_settings.folder.glob("[!.]*"))) + randomly.randint(1, 5)
                until(lambda: _number_of(run_settings) >= goal or child.returncode() is not None, what="parts")  # noqa: B023
                time.sleep(randomly.uniform(0, 0.5))  # the ledger is committed twice a second
                if not kill_something(child, randomly):
                    child.send(signal.SIGKILL)
                child.wait(20)
                # A worker that was being started when its coordinator died has the lock until it is Python.
                until(lambda: _is_free(run_settings.out / ".lock"), what="a free lock")
        report = run_clients(settings(workers=2))
    assert (report.done, report.failed) == (300, ()) and 0 < report.done_before < 300
    assert_one_result_each(run_settings, sizes)


def _is_free(lock: Path) -> bool:
    with lock.open() as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _number_of(run_settings: Settings) -> int:
    return len(list(run_settings.folder.glob("[!.]*")))


def test_a_full_disk_costs_only_time(settings, tmp_path):
    with tiny_disk(tmp_path / "disk", "512k") as disk:
        run_settings = settings(sizes=[50] * 60, out=disk / "out", part_events=1)
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 320_000)
        with pytest.raises(OutputError, match="No space left on device"):
            run_clients(run_settings)
        ballast.unlink()
        assert run_clients(run_settings).done == 60
        assert_one_result_each(run_settings, [50] * 60)


U64 = np.array([2**63, 2**64 - 1], dtype=np.uint64)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (pa.array([[0, 1], [2]], pa.list_(pa.int64())), {"a": [0, 1], "b": [2]}),
        (pa.array([[0, 1], [2]], pa.list_(pa.int32())), {"a": [0, 1], "b": [2]}),
        (pa.array([[0, 1], []], pa.large_list(pa.uint8())), {"a": [0, 1], "b": []}),
        (pa.array([U64.tolist(), [0]], pa.list_(pa.uint64())), {"a": U64.tolist(), "b": [0]}),
        (pa.array([[0.0, 1.0], [2.0]], pa.list_(pa.float64())), "labels list<element: double>"),
        (pa.array([["0"], ["1"]], pa.list_(pa.string())), "expected string and list of int64"),
        (pa.array([[True], [False]], pa.list_(pa.bool_())), "expected string and list of int64"),
        (pa.array([0, 1], pa.int64()), "expected string and list of int64"),
        (pa.array([[0, None], [2]], pa.list_(pa.int64())), "an event without a name or labels"),
        (pa.array([None, [2]], pa.list_(pa.int64())), "an event without a name or labels"),
    ],
)
def test_parts_of_other_programs_are_exact_or_refused(tmp_path, labels, says):
    path = tmp_path / part_file("a")
    pq.write_table(pa.table({"event": ["a", "b"], "labels": labels}), path)
    if isinstance(says, dict):
        assert {name: found.tolist() for name, found in read_part(path).items()} == says
        return
    with pytest.raises(InputError, match=says) as caught:
        read_part(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_are_missing_or_no_text(tmp_path):
    path = tmp_path / part_file("a")
    pq.write_table(pa.table({"event": pa.array(["a", None]), "labels": [[1], [2]]}), path)
    for read in (read_part, events_of):
        with pytest.raises(InputError, match="an event without a name"):
            read(path)
