"""Events and servers that fail in runs over several servers behind a real nginx: nobody pays for another's fault."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import signal
import sqlite3
import threading

import pytest
from fake_farms import fake_farm
from fakes.running import fake_triton
from runs import assert_whole, ledger_rows

from exatrkx_hpc.base.process import Child
from exatrkx_hpc.work.inference.blame import DELIVERIES
from exatrkx_hpc.work.news import EventPoisoned
from exatrkx_hpc.work.run.run import run_clients

pytestmark = pytest.mark.usefixtures("nginx")

BAD = 77
"""The number of hits of the event that fails."""


@pytest.fixture
def settings(settings):
    """Settings of a run with two workers and eight requests in flight."""
    return functools.partial(settings, workers=2, in_flight=4, patience=30.0)


def sizes(number: int, *, bad: int = 1) -> list[int]:
    """Return the hits of so many events; the bad ones are in the middle."""
    found = [3] * number
    found[number // 2 : number // 2 + bad] = [BAD] * bad
    return found


def strikes(run_settings) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(run_settings.out / "ledger.sqlite")) as db:
        return db.execute("SELECT member, cause, alone FROM strikes ORDER BY rowid").fetchall()


@pytest.mark.parametrize(
    ("switches", "more"),
    [
        (["--killer", str(BAD)], {}),
        (["--hanger", str(BAD)], {"request_timeout": 1.0}),
        (["--exhauster", str(BAD)], {}),
        (["--gone", str(BAD)], {}),
    ],
    ids=["kills", "hangs", "exhausts", "unavailable"],
)
def test_an_event_that_costs_servers_costs_itself_alone_and_few_deliveries(settings, tmp_path, switches, more):
    told = []
    with fake_farm(tmp_path / "farm", 4, *switches, "--delay", "0.02") as farm:
        run_settings = settings(sizes=sizes(80), server=farm.server, **more)
        report = run_clients(run_settings, tell=told.append)
        deliveries = farm.deliveries()[BAD]
        again = run_clients(run_settings)
        assert farm.deliveries()[BAD] == deliveries, "the next run does not repeat it"
    assert (report.done, [(one.event, one.kind) for one in report.failed]) == (79, [("evt_40", "poison")])
    assert 3 <= deliveries <= DELIVERIES
    assert (again.done_now, again.failed_before, again.failures) == (0, 1, 1)
    assert assert_whole(run_settings.events, run_settings.folder) == 79
    note = json.loads((run_settings.out / "quarantine" / "evt_40.json").read_text())
    assert note["kind"] == "poison" and "ended without an answer" in note["reason"]
    assert [news.event for news in told if isinstance(news, EventPoisoned)] == ["evt_40"]


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    ("switch", "kinds"), [("--killer", {"poison"}), ("--exhauster", {"poison", "endpoint"})], ids=["kills", "exhausts"]
)
def test_two_such_events_and_a_dataset_that_has_little_else(settings, tmp_path, switch, kinds, servers):
    """Each of two events that exhaust a server spoils the trust in it for the other one; the next run tries them."""
    with fake_farm(tmp_path / "farm", servers, switch, str(BAD), "--delay", "0.02") as farm:
        report = run_clients(settings(sizes=[3, BAD, BAD, 3, 3, 3], server=farm.server))
        assert farm.deliveries()[BAD] <= (2 if servers == 1 or len(kinds) == 1 else 5) * DELIVERIES
    assert report.done == 4 and {one.kind for one in report.failed} <= kinds


def test_after_retry_failed_the_strikes_begin_anew(settings, tmp_path):
    with fake_farm(tmp_path / "farm", 2, "--gone", str(BAD)) as farm:
        run_settings = settings(sizes=sizes(20), server=farm.server)
        run_clients(run_settings)
        assert ledger_rows(run_settings)[10] == ("evt_10", "quarantined")
    with fake_farm(tmp_path / "repaired", 2) as farm:
        report = run_clients(settings(server=farm.server, retry_failed=True))
    assert (report.done, report.failures) == (20, 0)
    run_clients(settings(server=farm.server)).check()
    assert strikes(run_settings) == []


def test_strikes_outlast_a_run_that_was_stopped(settings, tmp_path):
    """Whatever the moment of the stop is, the event is delivered at most four times."""

    def stop(tally):
        if tally.retries and tally.done > 10:
            raise KeyboardInterrupt

    with fake_farm(tmp_path / "farm", 4, "--gone", str(BAD), "--delay", "0.02") as farm:
        run_settings = settings(sizes=sizes(60), server=farm.server)
        with pytest.raises(KeyboardInterrupt):
            run_clients(run_settings, stop)
        first = strikes(run_settings)
        assert 1 <= len(first) <= 2 and not any(alone for *_, alone in first)
        report = run_clients(run_settings)
        assert farm.deliveries()[BAD] <= DELIVERIES
    assert report.done == 59 and report.failed[0].kind == "poison"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("servers", "sick"),
    [
        (2, ["--fail", "1000000000", "--fail-message", "the model broke"]),
        (2, ["--fail", "1000000000", "--fail-message", "CUDA error: an illegal memory access was encountered"]),
        (3, ["--fail", "1000000000", "--fail-status", "UNAVAILABLE", "--fail-message", "Socket closed"]),
        (3, ["--drop-label"]),
    ],
    ids=["internal", "cuda", "unavailable", "shapes"],
)
def test_a_sick_server_costs_no_event(settings, tmp_path, servers, sick):
    """It answers at once, so that the balancer prefers it."""
    with fake_farm(tmp_path / "farm", servers, of={0: sick, **{k: ["--delay", "0.03"] for k in (1, 2)}}) as farm:
        run_settings = settings(sizes=[3] * 40, server=farm.server)
        report = run_clients(run_settings)
    assert (report.done, report.failed) == (40, ())
    assert set(ledger_rows(run_settings, "state")) == {("done",)}


def test_an_event_is_blamed_by_two_servers(settings, tmp_path):
    with fake_farm(tmp_path / "farm", 3, "--refused", str(BAD), "--delay", "0.01") as farm:
        report = run_clients(settings(sizes=sizes(40), server=farm.server))
        servers = farm.servers_of(BAD)
    assert report.done == 39 and [one.kind for one in report.failed] == ["model"]
    assert len(set(servers)) == 2 and "INVALID_ARGUMENT" in report.failed[0].reason


def test_an_event_that_is_too_large_fails_at_once_and_stops_nobody(settings, tmp_path):
    with fake_farm(tmp_path / "farm", 2, "--large", str(BAD)) as farm:
        report = run_clients(settings(sizes=sizes(20), server=farm.server))
        assert farm.deliveries()[BAD] == 1
    assert report.done == 19 and [one.kind for one in report.failed] == ["input"]
    assert "too large" in report.failed[0].reason and "99 vs. 9" in report.failed[0].reason


@pytest.mark.slow
def test_servers_that_are_killed_again_and_again_cost_no_event(settings, tmp_path):
    over, randomly, killed = threading.Event(), random.Random(7), []

    def kill(children: list[Child]) -> None:
        # At 0.3 s, and then so rarely that no event is there three times.
        while not over.wait(1.5 if killed else 0.3):
            child = randomly.choice(children)
            killed.append(child.pid)
            child.send(signal.SIGKILL)

    with fake_farm(tmp_path / "farm", 4, "--delay", "0.1") as farm:
        killer = threading.Thread(target=kill, args=(farm.children,))
        killer.start()
        try:
            run_settings = settings(sizes=[3] * 250, server=farm.server, in_flight=8)
            report = run_clients(run_settings)
        finally:
            over.set()
            killer.join()
    assert (report.done, report.failed) == (250, ())
    assert len(killed) > 1
    assert not (run_settings.out / "quarantine").exists()


def test_an_event_that_always_times_out_does_not_stop_a_run_of_one_request_at_a_time(settings):
    with fake_triton("--hanger", str(BAD)) as fake:
        one = {"server": fake.server, "workers": 1, "in_flight": 1, "request_timeout": 0.7, "patience": 1.0}
        run_settings = settings(sizes=[BAD, 3, 3, 3, 3], **one)
        report = run_clients(run_settings)
        again = run_clients(run_settings)
    assert report.stopped is None and report.done == 4
    assert [(failed.event, failed.kind) for failed in report.failed] == [("evt_0", "poison")]
    assert (again.done_now, again.stopped) == (0, None)
