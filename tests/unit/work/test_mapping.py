"""`Endpoint.map`: named events as they finish, a ledger that grows, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import weakref

import numpy as np
import pytest
from fakes.running import expected, fake_triton, free_port
from typer.testing import CliRunner
from waiting import until

from exatrkx_hpc.base.errors import ConfigError, EndpointError, InputError, ModelError, OutputError
from exatrkx_hpc.base.process import spawn
from exatrkx_hpc.cli import app
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.map.found import Event, Found
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.shards import begin_sharding
from exatrkx_hpc.work.run.faults import BROKEN_MODEL
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import Settings, run_clients
from exatrkx_hpc.work.run.worker import LOOKAHEAD


@pytest.fixture
def endpoint(server):
    with Endpoint(server) as endpoint:
        yield endpoint


@pytest.fixture
def nobody():
    """An endpoint where nothing listens: what answers all the same was on disk."""
    with Endpoint(f"127.0.0.1:{free_port()}", patience=0) as endpoint:
        yield endpoint


def hits(number):
    """Event `number` has so many hits, and its own values."""
    return np.full((number, 3), number / 1000, dtype=np.float32)


def events(number):
    return {f"evt_{i}": hits(i) for i in range(number)}


def check(found, number):
    """Every event is there once, with the labels that the fake gives it."""
    assert sorted(one.name for one in found) == sorted(events(number))
    for one in found:
        np.testing.assert_array_equal(one.labels, expected(int(one.name[4:])))


def states(out):
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        return dict(db.execute("SELECT state, count(*) FROM events GROUP BY state"))


def runs(out):
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        return [stopped for (stopped,) in db.execute("SELECT stopped FROM runs ORDER BY run")]


# Named events


def test_a_slow_event_does_not_hold_the_others():
    with fake_triton("--hang", "1", "--hang-first", "1") as fake, Endpoint(fake.server) as endpoint:
        found = list(endpoint.map(events(6).items(), in_flight=2))
    check(found, 6)
    assert found[-1].name in {"evt_0", "evt_1"}  # gRPC sends the first two in either order


def test_named_events_come_in_their_order_if_asked(endpoint):
    found = list(endpoint.map(events(20), in_flight=3, ordered=True))
    assert [one.name for one in found] == list(events(20))
    check(found, 20)


@pytest.mark.parametrize("ledger", [False, True])
def test_no_more_is_read_than_has_a_place(endpoint, tmp_path, ledger):
    taken = 0

    def source():
        nonlocal taken
        for number in range(60):
            taken += 1
            yield f"evt_{number}", hits(number)

    room = 4 + LOOKAHEAD
    for number, _ in enumerate(endpoint.map(source(), in_flight=4, ledger=tmp_path / "out" if ledger else None)):
        assert taken <= number + room
        if number % 20 == 0:  # and no more is kept
            assert sum(type(one) in (Event, Found) for one in gc.get_objects()) <= 4 * room
    assert number == 59


def test_there_are_no_more_requests_than_in_flight(tmp_path):
    with fake_triton("--most", "3", "--delay", "0.002") as fake, Endpoint(fake.server) as endpoint:
        check(list(endpoint.map(events(40), in_flight=3, ledger=tmp_path)), 40)


def test_what_an_event_fails_for_itself_stops_nobody(endpoint):
    wrong = {"good": hits(2), "flat": np.zeros(3), "odd": [["a", "b", "c"]], "last": hits(1)}
    found = {one.name: one for one in endpoint.map(wrong)}
    assert found["good"].labels.tolist() == [2, 1] and found["last"].labels.tolist() == [1]
    for name in ("flat", "odd"):
        assert isinstance(found[name].error, InputError)
        with pytest.raises(InputError, match="hits"):
            _ = found[name].labels


def test_a_reader_may_use_its_array_again(endpoint, tmp_path):
    buffer = np.zeros((3, 3), dtype=np.float32)

    def source():
        for number in range(20):
            buffer[:] = number / 1000
            yield f"evt_{number}", buffer

    assert len(list(endpoint.map(source(), ledger=tmp_path))) == 20
    same = {f"evt_{number}": np.full((3, 3), number / 1000) for number in range(20)}
    assert all(one.before for one in endpoint.map(same, ledger=tmp_path))


def test_a_dead_endpoint_ends_a_map_and_costs_one_patience():
    taken = []

    def source():
        for number in range(1000):
            taken.append(number)
            yield f"evt_{number}", hits(2)

    with (
        fake_triton("--unloading", "100000") as fake,
        Endpoint(fake.server, patience=0) as endpoint,
        pytest.raises(EndpointError, match="no available versions"),
    ):
        list(endpoint.map(source(), in_flight=3))
    assert len(taken) < 10


def test_a_broken_model_ends_a_map(tmp_path):
    with (
        fake_triton("--fail", "100000", "--fail-status", "INVALID_ARGUMENT") as fake,
        Endpoint(fake.server) as endpoint,
        pytest.raises(ModelError, match=f"{BROKEN_MODEL} events in a row"),
    ):
        list(endpoint.map(events(300), ledger=tmp_path))
    assert "in a row" in runs(tmp_path)[0]


def test_as_many_bad_events_in_all_end_no_map():
    broken = ("--fail", "100000", "--fail-status", "INVALID_ARGUMENT", "--good-each", str(2 * BROKEN_MODEL - 1))
    with fake_triton(*broken) as fake, Endpoint(fake.server) as endpoint:
        found = list(endpoint.map(events(2 * BROKEN_MODEL), in_flight=1))
    assert [one.name for one in found if one.error is None] == [
        f"evt_{BROKEN_MODEL - 1}",  # each event before was refused twice
        f"evt_{2 * BROKEN_MODEL - 1}",
    ]


def test_what_cannot_be_mapped_is_refused(endpoint, tmp_path):
    with pytest.raises(ConfigError, match="in_flight must be at least 1"):
        endpoint.map({}, in_flight=0)
    with pytest.raises(InputError, match="a ledger needs event names"):
        list(endpoint.map([hits(1)], ledger=tmp_path))
    with pytest.raises(InputError, match="event 1 differs from those before"):
        list(endpoint.map([("evt_0", hits(1)), hits(1)]))
    for name in ("", ".hidden", "a/b", "a\0b", "x" * 300):
        with pytest.raises(InputError, match="is not a valid event name"):
            list(endpoint.map([(name, hits(1))], ledger=tmp_path))
    with pytest.raises(InputError, match="two events are named evt_1"):
        list(endpoint.map([("evt_1", hits(1))] * 2, ledger=tmp_path / "twice"))


# The ledger


def test_what_is_done_is_told_from_the_ledger(endpoint, nobody, tmp_path):
    out = tmp_path / "out"
    first = list(endpoint.map(events(10).items(), ledger=str(out)))
    check(first, 10)
    assert not any(one.before for one in first)
    again = list(nobody.map(events(10), ledger=out))
    check(again, 10)
    assert all(one.before for one in again)
    assert states(out) == {"done": 10}
    assert sorted(path.name for path in (out / "labels").iterdir()) == sorted(f"{name}.csv" for name in events(10))
    report = read_report(out / "report.json")
    assert (report.done, report.events, report.server, report.stopped) == (10, 10, endpoint.server, None)
    assert report.items == sum(range(10)) and report.version == "1"


def test_a_ledger_grows(endpoint, tmp_path):
    list(endpoint.map(events(3), ledger=tmp_path))
    found = list(endpoint.map(events(7), ledger=tmp_path))
    check(found, 7)
    assert sum(one.before for one in found) == 3
    report = read_report(tmp_path / "report.json")
    assert (report.done, report.done_before, report.events) == (7, 3, 7)
    assert list(endpoint.map({}, ledger=tmp_path / "none")) == []
    assert read_report(tmp_path / "none" / "report.json").events == 0


def test_a_page_is_made_of_it(endpoint, tmp_path):
    list(endpoint.map({**events(4), "bad": np.zeros(2)}, ledger=tmp_path))
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "4 of 5" in (tmp_path / "report.html").read_text()


def test_an_event_that_changed_is_noticed(endpoint, tmp_path):
    list(endpoint.map(events(5), ledger=tmp_path))
    changed = {**events(5), "evt_3": hits(3) + 1, "evt_4": hits(2)}
    with pytest.raises(InputError, match=r"evt_3 differs from.*accept_changes=True"):
        list(endpoint.map(changed, ledger=tmp_path))
    found = {one.name: one for one in endpoint.map(changed, ledger=tmp_path, accept_changes=True)}
    assert [name for name, one in found.items() if not one.before] == ["evt_3", "evt_4"]
    np.testing.assert_array_equal(found["evt_4"].labels, expected(2))
    report = read_report(tmp_path / "report.json")
    assert (report.done, report.done_before, report.events) == (5, 3, 5)
    assert all(one.before for one in endpoint.map(changed, ledger=tmp_path))


def test_quarantine(endpoint, nobody, tmp_path):
    wrong = {**events(3), "evt_1": np.zeros(7)}
    found = {one.name: one for one in endpoint.map(wrong, ledger=tmp_path)}
    assert isinstance(found["evt_1"].error, InputError)
    note = tmp_path / "quarantine" / "evt_1.json"
    told = json.loads(note.read_text())
    assert told["kind"] == "input" and told["reason"] == str(found["evt_1"].error) and "file" not in told
    assert states(tmp_path) == {"done": 2, "quarantined": 1}
    # It is passed over, until it is mended.
    again = {one.name: one for one in nobody.map(wrong, ledger=tmp_path)}
    assert again["evt_1"].before and str(again["evt_1"].error) == str(found["evt_1"].error)
    tried = {one.name: one for one in endpoint.map(wrong, ledger=tmp_path, retry_failed=True)}
    assert not tried["evt_1"].before and tried["evt_0"].before
    check(list(endpoint.map(events(3), ledger=tmp_path)), 3)
    assert states(tmp_path) == {"done": 3}
    report = read_report(tmp_path / "report.json")
    assert (report.done, report.failures, report.failed_before, report.events) == (3, 0, 0, 3)
    list(endpoint.map(events(3), ledger=tmp_path))
    assert not note.exists()


def test_what_failed_for_the_endpoint_waits_for_the_next_map(tmp_path):
    with fake_triton("--unloading", "3") as fake, Endpoint(fake.server, patience=0) as endpoint:
        with pytest.raises(EndpointError, match="no available versions"):
            list(endpoint.map(events(9), ledger=tmp_path, in_flight=3, ordered=True))
        assert not (tmp_path / "quarantine").exists()
        assert states(tmp_path)["failed"] >= 2
        check(list(endpoint.map(events(9), ledger=tmp_path)), 9)
    assert states(tmp_path) == {"done": 9}


@pytest.mark.parametrize("damage", ["unlink", "tear", "swap"])
def test_labels_that_are_not_those_that_were_written_are_made_again(endpoint, tmp_path, damage):
    list(endpoint.map(events(4), ledger=tmp_path))
    path = tmp_path / "labels" / "evt_2.csv"
    text = path.read_text()

    def harm():
        path.unlink() if damage == "unlink" else path.write_text(text[:1] if damage == "tear" else text[::-1])

    harm()
    found = list(endpoint.map(events(4), ledger=tmp_path))
    check(found, 4)
    assert [one.name for one in found if not one.before] == ["evt_2"]

    def source():  # and once more, while a map is under way
        for name, array in events(4).items():
            harm() if name == "evt_1" else None
            yield name, array

    found = list(endpoint.map(source(), ledger=tmp_path, in_flight=1))
    check(found, 4)
    assert [one.name for one in found if not one.before] == ["evt_2"]
    assert path.read_text() == text
    report = read_report(tmp_path / "report.json")
    assert (report.done, report.done_before, report.events) == (4, 3, 4)


def test_labels_that_no_map_wrote_are_refused_and_stay(endpoint, tmp_path):
    (tmp_path / "labels").mkdir()
    for name in ("bad", "other"):
        (tmp_path / "labels" / f"{name}.csv").write_text("1\n")
    with pytest.raises(OutputError, match="files that this program did not write"):
        list(endpoint.map({"bad": np.zeros(2)}, ledger=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    assert sorted(path.read_text() for path in (tmp_path / "labels").iterdir()) == ["1\n", "1\n"]


def test_a_lost_ledger_costs_no_result_of_a_map(endpoint, tmp_path):
    list(endpoint.map(events(3), ledger=tmp_path))
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(OutputError, match=r"3 results of an earlier run, but .* is missing.*another ledger="):
        list(endpoint.map(events(3), ledger=tmp_path))
    assert len(list((tmp_path / "labels").iterdir())) == 3


def test_a_result_that_cannot_be_written_ends_the_map(endpoint, tmp_path):
    (tmp_path / "labels" / "evt_2.csv").mkdir(parents=True)
    with pytest.raises(OutputError, match="choose another"):
        list(endpoint.map(events(3), ledger=tmp_path))
    (tmp_path / "labels" / "evt_2.csv").rmdir()
    check(list(endpoint.map(events(3), ledger=tmp_path)), 3)


def test_another_version_of_the_model_is_refused(server, tmp_path):
    with Endpoint(server) as endpoint:
        list(endpoint.map(events(3), ledger=tmp_path))
    with fake_triton("--version", "2") as fake, Endpoint(fake.server) as endpoint:
        assert all(one.before for one in endpoint.map(events(3), ledger=tmp_path))  # nothing is asked of it
        with pytest.raises(OutputError, match=r"are of version 1 of the model.*serves version 2"):
            list(endpoint.map(events(5), ledger=tmp_path))


def test_a_ledger_of_other_labels_is_refused(server, tmp_path):
    with Endpoint(server) as endpoint:
        list(endpoint.map(events(2), ledger=tmp_path / "map"))
    with (
        Endpoint(server, mode="fused") as endpoint,
        pytest.raises(OutputError, match=r"with mode ensemble.*mode fused"),
    ):
        list(endpoint.map(events(2), ledger=tmp_path / "map"))
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_1.csv").write_text("1,1,1\n")
    folder = Settings(server=server, events=tmp_path / "events", out=tmp_path / "folder")
    run_clients(folder)
    with Endpoint(server) as endpoint, pytest.raises(OutputError, match=r"with format csv.*uses format python"):
        list(endpoint.map(events(2), ledger=tmp_path / "folder"))
    with pytest.raises(OutputError, match=r"with format python.*uses format csv"):
        run_clients(Settings(server=server, events=tmp_path / "events", out=tmp_path / "map"))
    (tmp_path / "nodes").mkdir()
    begin_sharding(tmp_path / "nodes", 2)
    with Endpoint(server) as endpoint, pytest.raises(OutputError, match="in shards"):
        list(endpoint.map(events(2), ledger=tmp_path / "nodes"))


# The end


def test_two_maps_do_not_share_a_folder(endpoint, tmp_path):
    first = endpoint.map(events(9), ledger=tmp_path)
    next(first)
    with pytest.raises(OutputError, match="another run"):
        next(endpoint.map(events(9), ledger=tmp_path))
    first.close()
    check(list(endpoint.map(events(9), ledger=tmp_path)), 9)


@pytest.mark.parametrize("ledger", [False, True])
def test_an_iterator_that_is_left_leaves_no_request(tmp_path, ledger):
    out = tmp_path / "out" if ledger else None
    with fake_triton("--hang", "600", "--hang-first", "1000000") as fake, Endpoint(fake.server) as endpoint:
        results = endpoint.map(slow_reader(endpoint), in_flight=4, ledger=out)
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert not in_work(endpoint)
        if out:
            assert "ZeroDivisionError" in runs(out)[0]
            assert set(states(out)) <= {"waiting"}


def in_work(endpoint):
    async def others():
        return asyncio.all_tasks() - {asyncio.current_task()}

    return endpoint._call(others())


def slow_reader(endpoint):
    yield "evt_1", hits(1)
    yield "evt_2", hits(2)
    until(lambda: in_work(endpoint), what="requests in flight")
    raise ZeroDivisionError


def test_break_closes_the_ledger(endpoint, tmp_path):
    for found in endpoint.map(events(30), ledger=tmp_path):
        if found.name == "evt_5":
            break
    assert not in_work(endpoint)
    assert runs(tmp_path) == ["the iterator was closed"]
    report = read_report(tmp_path / "report.json")
    assert report.stopped == "the iterator was closed" and 1 <= report.done < 30
    check(list(endpoint.map(events(30), ledger=tmp_path)), 30)


def in_the_loop(endpoint):
    async def collect():
        gc.collect()

    endpoint._call(collect())


def in_a_thread(endpoint):
    thread = threading.Thread(target=gc.collect, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("at_rest", [True, False], ids=["at rest", "at work"])
@pytest.mark.parametrize("collect", [in_the_loop, in_a_thread, lambda _: gc.collect()], ids=["loop", "thread", "main"])
def test_an_iterator_may_be_dropped_in_any_thread(endpoint, tmp_path, collect, at_rest):
    """At rest nothing in the loop refers to the map any more, and all of it is garbage at once."""
    results = endpoint.map(events(30), ledger=tmp_path)
    next(results)
    left = weakref.ref(inspect.getgeneratorlocals(results)["self"])
    if at_rest:
        until(lambda: not left()._tasks, what="all that was asked is answered")
    cycle = [results]
    cycle.append(cycle)
    del results, cycle
    collect(endpoint)

    def free():
        with contextlib.suppress(OutputError), Results(tmp_path).owned():
            return True

    until(free, what="the ledger is closed")
    check(list(endpoint.map(events(30), ledger=tmp_path)), 30)
    until(lambda: gc.collect() >= 0 and left() is None, what="nothing is kept of a map that has ended")


def test_an_endpoint_that_is_closed_ends_its_maps(server, tmp_path):
    endpoint = Endpoint(server)
    results = endpoint.map(events(30), ledger=tmp_path)
    next(results)
    endpoint.close()
    with pytest.raises(EndpointError, match="closed"):
        list(results)
    with Endpoint(server) as another:
        check(list(another.map(events(30), ledger=tmp_path)), 30)


def test_a_map_works_where_a_loop_already_runs(endpoint, tmp_path):
    async def notebook_cell():
        return list(endpoint.map(events(5), ledger=tmp_path))

    check(asyncio.run(notebook_cell()), 5)


PROGRAM = """
import sys
import numpy as np
from exatrkx_hpc.work.map.endpoint import Endpoint

server, out, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
events = ((f"evt_{i}", np.full((i, 3), i / 1000, dtype=np.float32)) for i in range(number))
results = Endpoint(server).map(events, in_flight=4, ledger=out)
for found in results:
    print(found.name, int(found.before), flush=True)
    if sys.argv[4:] == ["leave"]:
        break
"""


def start(tmp_path, server, number, *more):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
    argv = [sys.executable, str(program), server, str(tmp_path / "out"), str(number), *more]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return spawn(argv, log=log, env=environment), log


def said(log):
    """The whole lines that the program wrote: an event's name, and whether it was done before."""
    lines = log.read_text().rpartition("\n")[0].splitlines()
    return {name: before == "1" for name, before in (line.split() for line in lines)}


def test_a_killed_kernel_loses_nothing(tmp_path):
    number, seen, rng = 120, set(), random.Random(5)
    with fake_triton("--delay", "0.005") as fake:
        for kill in range(3):
            child, log = start(tmp_path, fake.server, number)
            wanted = len(seen) + rng.randint(3, 30)
            try:
                until(lambda log=log, wanted=wanted: len(said(log)) >= wanted, what=f"kill {kill}")
            finally:
                child.send(signal.SIGKILL)
                child.wait(timeout=20)
            told = said(log)
            assert {name for name, before in told.items() if before} <= set(events(number))
            # What was yielded is in the ledger: it is not asked again.
            assert all(told[name] for name in seen if name in told)
            seen |= set(told)
        with Endpoint(fake.server) as endpoint:
            found = list(endpoint.map(events(number), ledger=tmp_path / "out"))
    check(found, number)
    assert {one.name for one in found if one.before} >= seen
    assert states(tmp_path / "out") == {"done": number}
    names = [path.name for path in (tmp_path / "out" / "labels").iterdir()]
    assert sorted(names) == sorted(f"{name}.csv" for name in events(number))


def test_ctrl_c_closes_the_ledger(tmp_path):
    with fake_triton("--hang", "600", "--hang-first", "1000000") as fake:
        child, log = start(tmp_path, fake.server, 50)
        until((tmp_path / "out" / "ledger.sqlite").exists, what="the map has begun")
        child.send(signal.SIGINT)
        assert child.wait(timeout=20) is not None
    assert "KeyboardInterrupt" in log.read_text()
    assert runs(tmp_path / "out") == ["stopped by SIGINT"]


def test_a_program_may_end_with_a_map_half_used(server, tmp_path):
    child, log = start(tmp_path, server, 50, "leave")
    assert child.wait(timeout=20) == 0
    assert len(log.read_text().splitlines()) == 1, log.read_text()


# Progress


def test_progress_is_told_to_a_function(endpoint, tmp_path):
    tallies = []
    list(endpoint.map(events(12), progress=tallies.append))
    assert [tally.done for tally in tallies] == list(range(13))
    assert {tally.events for tally in tallies} == {12}
    tallies.clear()
    list(endpoint.map((pair for pair in events(12).items()), progress=tallies.append))
    assert tallies[0].events == 0 and (tallies[-1].events, tallies[-1].done) == (12, 12)
    list(endpoint.map({**events(5), "bad": np.zeros(1)}, ledger=tmp_path))
    tallies.clear()
    list(endpoint.map({**events(12), "bad": np.zeros(1)}, ledger=tmp_path, progress=tallies.append))
    assert (tallies[0].done, tallies[0].failed, tallies[0].events) == (5, 1, 13)
    assert (tallies[-1].done, tallies[-1].failed, tallies[-1].left) == (12, 1, 0)


def test_progress_is_a_table_on_a_terminal_and_quiet_by_default(endpoint, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(endpoint.map(events(5)))
    assert capsys.readouterr().err == ""
    list(endpoint.map(events(5), progress=True))
    assert "events/s mean" in capsys.readouterr().err
