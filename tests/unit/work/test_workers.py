from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import psutil
import pytest
from fakes.running import fake_triton, free_port
from runs import assert_whole, driver, make_events, read_labels, tiny_disk, workers_of
from triton_helper import running_triton

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import (
    ConfigError,
    EndpointError,
    IncompleteRun,
    InputError,
    MissingComponent,
    ModelError,
    OutputError,
)
from exatrkx_hpc.base.process import kill_session, run
from exatrkx_hpc.measure.metrics import fetch, model_times, stage_shares
from exatrkx_hpc.models.build import build
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import EventFile, find_events
from exatrkx_hpc.work.ledger.open import begin, facts_of
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.run import faults
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.coordinator import Coordinator
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import Settings, StoppedRun, run_clients
from exatrkx_hpc.work.run.worker import Task
from exatrkx_hpc.work.run.worker_process import WorkerProcess
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD


@pytest.fixture
def settings(settings):
    """Settings of a run with two workers."""
    return functools.partial(settings, workers=2)


def test_every_event_gets_whole_labels_and_the_report_counts_them(settings):
    sizes = [*range(40), 5000]
    run_settings = settings(sizes=sizes, in_flight=3)
    tallies = []
    report = run_clients(run_settings, tallies.append)
    report.check()
    assert (report.events, report.done, report.failed, report.not_tried) == (41, 41, (), 0)
    assert report.items == sum(sizes) and sum(report.workers) == 41 and len(report.workers) == 2
    assert 0 < report.latency_ms.p50 <= report.latency_ms.p95 <= report.latency_ms.p99
    assert report.events_per_second == pytest.approx(41 / report.seconds)
    assert assert_whole(run_settings.events, run_settings.folder) == 41
    assert read_report(run_settings.report) == report
    assert [tally.done for tally in tallies] == list(range(42))
    assert 1 <= max(tally.in_flight for tally in tallies) <= run_settings.workers * run_settings.in_flight
    assert tallies[0].in_flight and not tallies[-1].in_flight
    assert workers_of(os.getpid()) == []


def test_folders_with_hostile_names(settings, tmp_path):
    events = make_events(tmp_path / 'a\'; echo foo $HOME "x" é', [3, 4])
    (events / "evt_1.csv").rename(events / "e v't $(id).csv")
    report = run_clients(settings(events=events, out=tmp_path / "o ut'; `id`", workers=1))
    assert report.done == 2 and (tmp_path / "o ut'; `id`" / "labels" / "e v't $(id).csv").exists()


def test_fresh_replaces_results_of_an_earlier_run_and_removes_its_leftovers(settings):
    run_settings = settings(sizes=[3], workers=1, fresh=True)
    run_settings.folder.mkdir(parents=True)
    run_settings.results.mark()
    (run_settings.folder / "evt_0.csv").write_text("9\n9\n")
    (run_settings.folder / ".evt_7.csv.k2j3h4_5").write_text("9")
    run_clients(run_settings)
    assert assert_whole(run_settings.events, run_settings.folder) == 1


def earlier_labels(run_settings: Settings) -> None:
    """Leave what an earlier run may have left: labels of every event, and a report."""
    run_settings.folder.mkdir(parents=True)
    run_settings.results.mark()
    for event in find_events(run_settings.events):
        (run_settings.folder / f"{event.name}.csv").write_text("9\n9\n")
    run_settings.report.write_text("{}")


def test_the_labels_of_another_set_stay(settings):
    run_settings = settings(sizes=[3], workers=1, fresh=True)
    earlier_labels(run_settings)
    (run_settings.folder / "another_7.csv").write_text("9\n")
    run_clients(run_settings)
    assert sorted(file.name for file in run_settings.folder.iterdir()) == ["another_7.csv", "evt_0.csv"]
    assert (run_settings.folder / "another_7.csv").read_text() == "9\n"


def test_an_endpoint_that_is_not_ready_costs_no_earlier_result(settings):
    run_settings = settings(sizes=[3], server=f"127.0.0.1:{free_port()}", fresh=True)
    earlier_labels(run_settings)
    with pytest.raises(EndpointError):
        run_clients(run_settings)
    assert (run_settings.folder / "evt_0.csv").read_text() == "9\n9\n"
    assert run_settings.report.read_text() == "{}"


def test_labels_that_cannot_be_removed_end_the_run_with_one_line(settings):
    run_settings = settings(sizes=[3], fresh=True)
    (run_settings.folder / "evt_0.csv").mkdir(parents=True)
    run_settings.results.mark()
    with pytest.raises(OutputError, match=r"cannot use .*out for results: .*evt_0\.csv\); choose another -o"):
        run_clients(run_settings)


def test_two_runs_do_not_share_a_folder(settings, tmp_path):
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=[50] * 400, server=fake.server)
        with driver(run_settings, tmp_path / "log") as child:
            wait_for(lambda: run_settings.folder.is_dir() and len(list(run_settings.folder.iterdir())) > 5)
            part = run_settings.folder / ".evt_1.csv.ofthe1st"
            part.write_text("")
            with pytest.raises(OutputError, match=r"another run writes to .*/out; wait until it ends, or choose"):
                run_clients(run_settings)
            assert part.exists() and child.returncode() is None
            child.send(signal.SIGTERM)
            assert child.wait(20) == IncompleteRun.exit_code
        done = len(list(run_settings.folder.iterdir()))
        assert 5 < read_report(run_settings.report).done == done
    for extra in list(run_settings.events.iterdir())[1:]:
        extra.unlink()
    assert run_clients(settings(accept_changes=True)).done == 1


def test_a_bad_event_fails_alone_and_is_named(settings):
    run_settings = settings(sizes=[3] * 6, fresh=True)
    earlier_labels(run_settings)
    (run_settings.events / "evt_2.csv").write_text("1,2,3\n1,nan,3\n")
    (run_settings.events / "evt_4.csv").write_text("1,2\n")
    report = run_clients(run_settings)
    assert report.done == 4 and report.stopped is None
    assert [(failed.event, failed.kind) for failed in sorted(report.failed, key=lambda one: one.event)] == [
        ("evt_2", "input"),
        ("evt_4", "input"),
    ]
    assert assert_whole(run_settings.events, run_settings.folder) == 4
    assert any("evt_2.csv:2: nan is not finite" in failed.reason for failed in report.failed)
    with pytest.raises(IncompleteRun, match=r"4 of 6 events have results; first failure: evt_"):
        report.check()


def test_a_model_that_answers_nonsense_fails_each_event(settings):
    with fake_triton("--drop-label") as fake:
        report = run_clients(settings(sizes=[3] * 4, server=fake.server))
    assert report.done == 0 and {failed.kind for failed in report.failed} == {"model"}
    assert list((settings().folder).iterdir()) == []


def test_repeats_are_counted(settings):
    with fake_triton("--unloading", "3") as fake:
        report = run_clients(settings(sizes=[3] * 4, server=fake.server, workers=1, in_flight=1))
    assert report.done == 4 and report.retries == 3


def test_a_slow_server_is_shared_by_all_workers(settings):
    with fake_triton("--delay", "0.2") as fake:
        report = run_clients(settings(sizes=[3] * 20, server=fake.server, workers=4, in_flight=1))
    assert report.done == 20 and min(report.workers) >= 2


def test_a_worker_keeps_so_many_requests_in_flight_and_no_more(settings):
    run_settings = settings(sizes=[3] * 30, workers=2, in_flight=3)
    with fake_triton("--delay", "0.1", "--most", "6") as fake:
        assert run_clients(dataclasses.replace(run_settings, server=fake.server)).done == 30
    with fake_triton("--delay", "0.3", "--most", "5") as fake:
        again = dataclasses.replace(run_settings, server=fake.server, fresh=True)
        assert run_clients(again).failed[0].kind == "model"


# Workers that die


def test_the_events_of_a_killed_worker_are_not_lost(settings):
    victims = []

    def kill_one(tally):
        if tally.done in {5, 20, 40} and len(victims) < 3:
            victim = workers_of(os.getpid())[0]
            victim.kill()
            victims.append(victim.pid)

    with fake_triton("--delay", "0.02") as fake:
        run_settings = settings(sizes=[5] * 60, server=fake.server)
        report = run_clients(run_settings, kill_one)
    assert len(set(victims)) == 3
    assert (report.done, report.failed) == (60, ())
    assert assert_whole(run_settings.events, run_settings.folder) == 60


@pytest.mark.parametrize("number", [2, 12])
def test_workers_that_die_each_time_end_the_run(settings, number):
    over = threading.Event()

    def kill_all():
        seen = set()  # one that has only just begun may have no event yet
        while not over.wait(0.05):
            living = workers_of(os.getpid())
            for worker in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if worker in seen:
                        worker.kill()
            seen = set(living)

    killer = threading.Thread(target=kill_all)
    with fake_triton("--delay", "600") as fake:
        run_settings = settings(sizes=[5] * number, server=fake.server, workers=1, in_flight=1)
        killer.start()
        try:
            if number == 2:
                report = run_clients(run_settings)
                assert [failed.kind for failed in report.failed] == ["worker"] * 2
                assert "died 3 times, last by SIGKILL" in report.failed[0].reason
            else:
                with pytest.raises(StoppedRun, match="the workers keep dying, the last one by SIGKILL"):
                    run_clients(run_settings)
        finally:
            over.set()
            killer.join()


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """Let the workers be another program: `text`, a script of Python or of sh."""
    begun = []

    def make(text: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        begun.append(tmp_path / "sessions")

    yield make
    for sessions in begun:
        for session in sessions.read_text().split() if sessions.exists() else ():
            kill_session(int(session))


TELLS_NOTHING = f"""#!{sys.executable}
import json, os, signal, sys
task, event = (json.loads(sys.stdin.readline()) for _ in range(2))
with open(f"{{task['labels']}}/{{event['name']}}.csv", "w") as file:
    file.write("1\\n1\\n1\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_event_that_is_given_up_has_no_labels(settings, fake_worker):
    run_settings = settings(sizes=[3], workers=1)
    fake_worker(TELLS_NOTHING)
    report = run_clients(run_settings)
    assert [failed.kind for failed in report.failed] == ["worker"]
    assert list(run_settings.folder.iterdir()) == []


ANSWERS_SOON = f"""#!{sys.executable}
import json, sys, time
sys.stdin.readline()
for line in sys.stdin:
    read, written = {{"size": 0, "mtime_ns": 0, "sha256": "00"}}, {{"result_size": 0, "result_sha256": "00"}}
    figures = {{"items": 0, "seconds": 0.001, "retries": 0}}
    time.sleep(0.002)
    print(json.dumps({{"name": json.loads(line)["name"], **figures, **read, **written}}), flush=True)
"""


ONE_AT_A_TIME = f"""#!{sys.executable}
import json, os, select, signal, sys
from pathlib import Path

notes = Path(sys.argv[0]).with_name("given")
first, rest = not notes.exists(), b""
while select.select([0], [], [], 60)[0]:
    given = []
    while select.select([0], [], [], 0.3)[0]:  # what was given together is here together
        read = os.read(0, 1 << 16)
        if not read:
            sys.exit()
        *lines, rest = (rest + read).split(b"\\n")
        given += [fields["name"] for fields in map(json.loads, lines) if "name" in fields]
    if not given:
        continue
    with notes.open("a") as file:
        print(json.dumps(given), file=file)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    for name in given:
        read, written = {{"size": 0, "mtime_ns": 0, "sha256": "00"}}, {{"result_size": 0, "result_sha256": "00"}}
        figures = {{"items": 0, "seconds": 0.001, "retries": 0}}
        print(json.dumps({{"name": name, **figures, **read, **written}}), flush=True)
"""


def test_events_that_may_have_killed_their_worker_go_out_alone_and_last(settings, tmp_path, fake_worker):
    run_settings = settings(sizes=[3] * 8, workers=1, in_flight=2)
    fake_worker(ONE_AT_A_TIME)
    report = run_clients(run_settings)
    assert (report.done, report.failed) == (8, ())
    suspects, *others = map(json.loads, (tmp_path / "given").read_text().splitlines())
    assert len(suspects) > 1
    assert others[-len(suspects) :] == [[event] for event in suspects]
    assert not any(event in suspects for given in others[: -len(suspects)] for event in given)


def test_the_time_of_a_run_is_from_its_begin_to_its_last_answer(tmp_path, fake_worker, make_coordinator):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    def later(tally):  # shown once as it begins, and after each answer
        clock.now += 10.0

    fake_worker(ANSWERS_SOON)
    clock = Clock()
    coordinator = make_coordinator("h:1", events=4, workers=1, show=later, clock=clock)
    asyncio.run(coordinator.run())
    report = coordinator.report()
    assert (report.done, report.seconds, report.events_per_second) == (4, 40.0, 0.1)


@pytest.mark.slow
def test_the_coordinators_memory_does_not_grow_with_the_number_of_events(settings, tmp_path, fake_worker):
    """Neither before the first answer, when a list of all events would be there, nor from answer to answer.

    What waits for the next commit comes and goes with the machine's load. The worker is slow enough that commits fall
    into each third of the answers, so the least of a third is without it.
    """
    fake_worker(ANSWERS_SOON)
    before, least = [], []
    for number in (700, 2100):
        folder = tmp_path / f"events-{number}"
        folder.mkdir()
        for event in range(number):
            (folder / f"{event}.csv").touch()
        run_settings = settings(events=folder, out=tmp_path / f"out-{number}", workers=1)
        held = sizes, peaks = array("q"), array("q")  # which hardly grow themselves

        def note(_, held=held) -> None:
            for noted, size in zip(held, tracemalloc.get_traced_memory(), strict=True):
                noted.append(size)

        tracemalloc.start()
        try:
            assert run_clients(run_settings, note).done == number
        finally:
            tracemalloc.stop()
        before.append(peaks[0])
        third = len(sizes) // 3
        least = [min(sizes[begin : begin + third]) for begin in (0, third, 2 * third)]
    assert before[1] < 1.4 * before[0], before  # with a list of all events it is 1.8
    assert least[2] - least[0] < 200 * 1400, least  # a result that is kept is larger


# Its stdout stays open after its death, as if a call of the kernel held it.
DEAF = """#!/bin/sh
echo $$ >> "$(dirname "$0")/sessions"
sleep 600 &
exec sleep 600
"""


def within(seconds, work):
    """Run `work`, and see that it left no pipe open."""
    value = asyncio.run(asyncio.wait_for(work, seconds))
    gc.collect()
    return value


@pytest.mark.slow
def test_a_worker_that_hangs_with_an_open_pipe_is_given_up(tmp_path, fake_worker):
    async def ask():
        worker = WorkerProcess(grace=0.3)
        await worker.start(Task(server="h:1", models="m", folder="", in_flight=1, request_timeout=1, patience=1))
        worker.give(EventFile(name="e", path=tmp_path / "e.csv"))
        try:
            return await worker.answer(longest=0.3), await worker.ended()
        finally:
            worker.discard()

    fake_worker(DEAF)
    assert within(60, ask()) == (b"", -signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_says_no_more_but_does_not_end_is_killed(fake_worker):
    async def ask():
        worker = WorkerProcess(grace=0.3)
        await worker.start(Task(server="h:1", models="m", folder="", in_flight=1, request_timeout=1, patience=1))
        try:
            return await worker.answer(longest=60), await worker.ended(), worker.alive
        finally:
            worker.discard()

    fake_worker("#!/bin/sh\nexec sleep 600 >&-")
    assert within(60, ask()) == (b"", -signal.SIGKILL, False)


@pytest.mark.slow
def test_a_run_ends_whatever_its_workers_do(tmp_path, fake_worker, make_coordinator):
    async def stopped():
        coordinator = make_coordinator("127.0.0.1:1", events=4, workers=2, show=print, grace=0.5)
        asyncio.get_running_loop().call_later(1.0, coordinator.stop, "enough")
        await coordinator.run()
        return coordinator.report()

    fake_worker(DEAF)
    report = within(60, stopped())
    assert (report.stopped, report.not_tried) == ("enough", 4)


def test_a_python_that_is_not_there_is_named(settings, monkeypatch):
    run_settings = settings(sizes=[3])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MissingComponent, match=r"cannot start a worker: .*No such file.*/nowhere/python"):
        run_clients(run_settings)
    assert read_report(run_settings.report).not_tried == 1


NO_FILE_LEFT = """
import os, resource, signal, sys
from pathlib import Path
import psutil
from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.work.run.run import Settings, run_clients

killed = []

def kill_one(tally):
    if tally.done >= 5 and not killed:
        workers = psutil.Process().children()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        killed.append(workers[0].pid)
        os.kill(killed[0], signal.SIGKILL)

server, events, out = sys.argv[1:]
try:
    run_clients(Settings(server=server, events=Path(events), out=Path(out), workers=2), kill_one)
except ExatrkxError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_worker_that_cannot_be_replaced_ends_the_run_with_one_line(settings):
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=[5] * 400, server=fake.server)
        words = [run_settings.server, str(run_settings.events), str(run_settings.out)]
        done = run([sys.executable, "-c", NO_FILE_LEFT, *words], timeout=60)
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert done.stderr.splitlines(keepends=True)[-1] == "cannot start a worker (Too many open files); lower -n\n"
    assert 5 <= assert_whole(run_settings.events, run_settings.folder) < 400


# Endpoints that fail


def test_an_endpoint_that_stays_dead_stops_the_run_instead_of_failing_event_by_event(settings):
    with fake_triton("--die-after", "10") as fake:
        run_settings = settings(sizes=[5] * 200, server=fake.server, patience=1.0, in_flight=2)
        with pytest.raises(StoppedRun, match=r"no results from 127\.0\.0\.1:\d+ for \d+ s \(nothing answers") as caught:
            run_clients(run_settings)
    report = caught.value.report
    assert report.done == assert_whole(run_settings.events, run_settings.folder) <= 10
    assert 0 < len(report.failed) < 60 and {failed.kind for failed in report.failed} == {"endpoint"}
    assert report.not_tried == 200 - report.done - len(report.failed)
    assert read_report(run_settings.report) == report


def test_an_endpoint_that_comes_back_costs_no_event(settings):
    port = free_port()
    restarted = contextlib.ExitStack()
    begun = []

    def restart(tally):
        if tally.done == 10 and not begun:
            begun.append(tally)
            threading.Timer(2.0, lambda: restarted.enter_context(fake_triton("--port", str(port)))).start()

    with restarted, fake_triton("--port", str(port), "--die-after", "10") as fake:
        report = run_clients(settings(sizes=[5] * 100, server=fake.server), restart)
    assert (report.done, report.failed) == (100, ()) and report.retries > 0


def test_an_endpoint_with_a_token_is_asked_with_the_token_whether_it_is_dead(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "DEAD_ENDPOINT", 0.5)
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0" * 64)
    with fake_triton("--token", "0" * 64, "--hanger", "7") as fake:
        slow = {"workers": 1, "in_flight": 1, "request_timeout": 0.7, "patience": 0.5, "token_file": token}
        report = run_clients(settings(sizes=[7, 3, 3, 3], server=fake.server, **slow))
    assert (report.stopped, report.done, [failed.kind for failed in report.failed]) == (None, 3, ["poison"])


def test_a_run_begins_only_with_an_endpoint_that_serves_the_model(settings):
    with pytest.raises(EndpointError, match="connection refused"):
        run_clients(settings(sizes=[3], server=f"127.0.0.1:{free_port()}"))
    with pytest.raises(ModelError, match=r"traccc-gpu is not ready .* \(ready: exatrkx\)"):
        run_clients(settings(model="traccc-gpu"))


# Wrong settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 0}, "-n must be at least 1, not 0"),
        ({"in_flight": -1}, "-j must be at least 1, not -1"),
        ({"patience": -1.0}, "the patience at least 0 s"),
        ({"server": "nowhere"}, "HOST:PORT"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, changes, words):
    with pytest.raises(ConfigError, match=words):
        settings(**changes)


def test_labels_never_overwrite_the_events(tmp_path):
    events = make_events(tmp_path / "labels", [1])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="would overwrite the events"):
        Settings(server="h:1", events=events, out=tmp_path / "link")


def test_no_events_and_no_place_for_results(settings, tmp_path):
    (tmp_path / "events").mkdir()
    with pytest.raises(InputError, match=r"no events \(\*\.csv, "):
        run_clients(settings())
    (tmp_path / "events" / "e.csv").write_text("")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot use .*out for results"):
        run_clients(settings())


# A token that no longer holds


def test_a_token_that_is_refused_in_the_middle_ends_the_run_and_fails_no_event(settings):
    refused = ["--fail", "1000", "--good-each", "10", "--fail-status", "UNAUTHENTICATED"]
    with fake_triton(*refused) as fake:
        run_settings = dataclasses.replace(settings(sizes=[10] * 60, patience=600), server=fake.server)
        with pytest.raises(EndpointError, match=r"refuses the token; .*--token-file"):
            run_clients(run_settings)
    with fake_triton() as fake:
        report = run_clients(dataclasses.replace(run_settings, server=fake.server))
    assert (report.done, report.failures, report.failed_before) == (60, 0, 0)


# Output that fails


def test_a_full_disk_stops_the_run_with_one_line(settings, tmp_path):
    run_settings = settings(sizes=[100] * 60)
    with tiny_disk(tmp_path / "disk", "128k") as disk:
        run_settings = settings(out=disk)
        with pytest.raises(OutputError, match=r"cannot write .*/disk/.*: No space left on device") as caught:
            run_clients(run_settings)
        assert "\n" not in str(caught.value)
        assert 0 < assert_whole(run_settings.events, run_settings.folder) < 60


def test_a_quota_at_the_output_ends_with_the_exit_code_of_outputs(settings, tmp_path):
    run_settings = settings(sizes=[3, 100_000, 3])
    with driver(run_settings, tmp_path / "log", largest=150_000) as child:
        assert child.wait(60) == OutputError.exit_code
    assert "evt_1.csv: File too large" in (tmp_path / "log").read_text()
    assert not (run_settings.folder / "evt_1.csv").exists()
    assert_whole(run_settings.events, run_settings.folder)


# Signals


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_whole_results_and_no_process(settings, tmp_path, number):
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=[50] * 2000, server=fake.server)
        with driver(run_settings, tmp_path / "log") as child:
            wait_for(lambda: run_settings.folder.is_dir() and len(list(run_settings.folder.iterdir())) > 20)
            workers = workers_of(child.pid)
            assert len(workers) == 2
            child.send(number)
            assert child.wait(20) == IncompleteRun.exit_code
            assert not any(worker.is_running() for worker in workers)
    report = read_report(run_settings.report)
    assert report.stopped == f"stopped by {number.name}" and report.failed == ()
    assert 20 < report.done == assert_whole(run_settings.events, run_settings.folder) < 2000
    log = (tmp_path / "log").read_text()
    assert log.startswith(f"stopped by {number.name}; {report.done} of 2000") and log.count("\n") == 1


def test_workers_end_with_a_coordinator_that_is_killed(settings, tmp_path):
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=[50] * 2000, server=fake.server)
        with driver(run_settings, tmp_path / "log") as child:
            wait_for(lambda: run_settings.folder.is_dir() and len(list(run_settings.folder.iterdir())) > 20)
            workers = workers_of(child.pid)
            child.send(signal.SIGKILL)
            wait_for(lambda: not any(worker.is_running() for worker in workers))
    assert len(workers) == 2 and not run_settings.report.exists()
    for file in run_settings.folder.glob("[!.]*"):
        assert len(read_labels(file)) == 50


def test_the_handlers_of_the_caller_are_as_before(settings):
    def own(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        run_clients(settings(sizes=[3], workers=1))
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_runs_in_a_notebook_where_a_loop_already_runs(settings):
    run_settings = settings(sizes=[3] * 5)

    async def cell():
        return run_clients(run_settings)

    assert asyncio.run(cell()).done == 5
    assert json.loads(run_settings.report.read_text())["done"] == 5


def test_interrupting_a_notebook_cell_stops_the_run(settings):
    def interrupt(tally):
        if tally.done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    async def cell(run_settings):
        return run_clients(run_settings, interrupt)

    loop = asyncio.new_event_loop()  # as a notebook has it; asyncio.run would catch SIGINT itself
    try:
        with fake_triton("--delay", "0.05") as fake:
            run_settings = settings(sizes=[5] * 500, server=fake.server)
            with pytest.raises(StoppedRun, match="stopped by SIGINT"):
                loop.run_until_complete(cell(run_settings))
    finally:
        loop.close()
    assert 10 <= read_report(run_settings.report).done == assert_whole(run_settings.events, run_settings.folder) < 500
    assert workers_of(os.getpid()) == []


async def _always() -> bool:
    return True


@pytest.fixture
def make_coordinator(tmp_path):
    """Make a coordinator over some small events; its ledger is closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(server, *, events, request_timeout=5, **options):
            results = Results(tmp_path)
            results.folder.mkdir()
            folder = make_events(tmp_path / "e", [3] * events)
            facts = facts_of(folder, workload=WORKLOAD, mode="ensemble", model="exatrkx")
            ledger = stack.enter_context(begin(results, folder, facts))
            accounts = Accounts(ledger, results, folder, server=server, version="")
            labels = str(results.folder)
            times = {"request_timeout": request_timeout, "patience": request_timeout}
            task = Task(server=server, models="exatrkx", folder=labels, in_flight=1, **times)
            return Coordinator(task, accounts, is_ready=_always, **options)

        yield make


def test_a_worker_that_hangs_is_replaced(tmp_path, make_coordinator):
    def stop_one(tally):
        if tally.done == 10:
            workers_of(os.getpid())[0].suspend()

    with fake_triton("--delay", "0.02") as fake:
        coordinator = make_coordinator(fake.server, events=50, workers=2, show=stop_one, longest_silence=5)
        asyncio.run(coordinator.run())
    assert coordinator.report().done == 50 and coordinator.report().failed == ()


HANGS_AT_FIRST = ANSWERS_SOON.replace(
    "sys.stdin.readline()",
    """sys.stdin.readline()
import pathlib, time
try:
    pathlib.Path(sys.argv[0]).with_name("hung").touch(exist_ok=False)
    time.sleep(600)
except FileExistsError:
    pass""",
)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_although_nobody_said_when(tmp_path, fake_worker, make_coordinator):
    fake_worker(HANGS_AT_FIRST)
    options = {"show": lambda tally: None, "request_timeout": 0.3, "spare": 2.0}
    coordinator = make_coordinator("h:1", events=4, workers=1, **options)
    assert within(60, done_by(coordinator)) == 4
    assert (tmp_path / "hung").exists()


async def done_by(coordinator: Coordinator) -> int:
    await coordinator.run()
    return coordinator.report().done


def test_a_run_that_is_interrupted_before_it_began_does_nothing(tmp_path, server, make_coordinator):
    coordinator = make_coordinator(server, events=50, workers=1, show=print)
    coordinator.interrupt("enough")
    asyncio.run(coordinator.run())
    assert coordinator.report().stopped == "enough" and coordinator.report().done == 0


# A real Triton


@pytest.fixture(scope="module")
def real_server(tmp_path_factory, triton):
    folder = tmp_path_factory.mktemp("real")
    build(asset("model_repos/exatrkx"), folder / "repository", device="cpu", instances=1, fused=False)
    with running_triton(folder / "repository", folder) as running:
        yield running.grpc


@pytest.fixture
def reference_events(reference_data):
    return reference_data / "exatrkx" / "events_scaled"


def assert_one_label_a_hit(events: Path, labels: Path) -> int:
    files = list(labels.iterdir())
    for file in files:
        assert len(read_labels(file)) == len(read_hits(events / file.name)) > 0
    return len(files)


@pytest.mark.triton
def test_the_reference_events_get_one_label_a_hit(settings, real_server, reference_events):
    before = fetch(real_server.replace("8001", "8002"))
    run_settings = settings(server=real_server, events=reference_events)
    report = run_clients(run_settings)
    report.check()
    assert report.done == assert_one_label_a_hit(reference_events, run_settings.folder) == 16
    times = model_times(fetch(real_server.replace("8001", "8002")), before)
    assert {one.model for one in times} == {"exatrkx", "embed", "frnn", "filter", "applyfilter", "gnn", "wcc"}
    assert {(one.successes, one.failures) for one in times} == {(16, 0)}
    shares = stage_shares(times)
    assert len(shares) == 6 and sum(shares.values()) == pytest.approx(1.0) and min(shares.values()) > 0


@pytest.mark.triton
def test_the_smallest_events_get_labels_too(settings, real_server):
    run_settings = settings(sizes=[0, 1, 2], server=real_server)
    run_clients(run_settings).check()
    assert [len(read_labels(run_settings.folder / f"evt_{size}.csv")) for size in range(3)] == [0, 1, 2]


@pytest.mark.triton
def test_sigterm_in_the_middle_of_real_work(settings, real_server, reference_events, tmp_path):
    many = tmp_path / "events"
    many.mkdir()
    for copy in range(20):
        for event in reference_events.iterdir():
            (many / f"{copy}_{event.name}").symlink_to(event)
    run_settings = settings(server=real_server, events=many)
    with driver(run_settings, tmp_path / "log") as child:
        wait_for(lambda: run_settings.folder.is_dir() and len(list(run_settings.folder.iterdir())) > 5)
        workers = workers_of(child.pid)
        child.send(signal.SIGTERM)
        assert child.wait(20) == IncompleteRun.exit_code
        assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
    report = read_report(run_settings.report)
    assert 5 < report.done == assert_one_label_a_hit(many, run_settings.folder) < 320
    assert report.failed == () and report.stopped == "stopped by SIGTERM"


@pytest.mark.triton
def test_a_full_disk_stops_real_work(settings, real_server, reference_events, tmp_path):
    with tiny_disk(tmp_path / "disk", "32k") as disk:
        run_settings = settings(server=real_server, events=reference_events, out=disk)
        with pytest.raises(OutputError, match="No space left on device"):
            run_clients(run_settings)
        assert assert_one_label_a_hit(reference_events, run_settings.folder) < 16


@pytest.mark.triton
def test_what_a_real_triton_says_of_an_unknown_model(settings, real_server):
    with pytest.raises(ModelError, match=r"nope is not ready at .* \(ready: applyfilter, embed, exatrkx, filter"):
        run_clients(settings(sizes=[3], server=real_server, model="nope"))
    nope = Endpoint(real_server, model="nope", patience=0.0)
    with nope as endpoint, pytest.raises(ModelError, match="'nope' is not found"):
        endpoint.find_tracks(np.zeros((3, 3)))
    with Endpoint(real_server, model="embed") as endpoint, pytest.raises(ModelError, match="INVALID_ARGUMENT"):
        endpoint.find_tracks(np.zeros((3, 3)))
