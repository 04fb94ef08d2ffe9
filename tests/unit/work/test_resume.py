from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
from command import exatrkx_hpc
from fakes.running import fake_triton, free_port
from runs import assert_whole, driver, kill_something, label_files, ledger_rows, make_events, tiny_disk, workers_of
from waiting import until

from exatrkx_hpc.base.errors import EndpointError, IncompleteRun, InputError, OutputError
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import StoppedRun, run_clients

# What a second run does


def test_a_second_run_does_what_is_left_and_says_what_was_before(settings):
    def stop(tally):
        if tally.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run_settings = settings(sizes=[3] * 40)
    with fake_triton("--delay", "0.05") as fake, pytest.raises(StoppedRun) as stopped:
        run_clients(settings(server=fake.server, in_flight=1), stop)
    before = stopped.value.report
    assert 4 <= before.done < 40 and before.done_before == 0 and before.not_tried == 40 - before.done
    kept = {name: (run_settings.folder / name).stat().st_ino for name in label_files(run_settings)}
    said, tallies = [], []
    report = run_clients(run_settings, tallies.append, tell=said.append)
    report.check()
    assert (report.done, report.done_before, report.done_now) == (40, before.done, 40 - before.done)
    assert sum(report.workers) == report.done_now and report.items == 3 * report.done_now
    assert [str(news) for news in said] == [f"{before.done} of 40 events were done before, {report.done_now} are left"]
    assert tallies[0].done == before.done and tallies[-1].done == 40
    assert all((run_settings.folder / name).stat().st_ino == inode for name, inode in kept.items())
    assert assert_whole(run_settings.events, run_settings.folder) == 40
    assert {state for _, state in ledger_rows(run_settings)} == {"done"}
    assert read_report(run_settings.report) == report


def test_a_run_with_nothing_left_needs_no_endpoint_and_keeps_the_report(settings):
    first = run_clients(settings(sizes=[3] * 5))
    shown = []
    report = run_clients(settings(server=f"127.0.0.1:{free_port()}"), shown.append)
    report.check()
    assert [(tally.events, tally.done, tally.in_flight) for tally in shown] == [(5, 5, 0)]
    assert (report.done, report.done_before, report.done_now, report.items) == (5, 5, 0, 0)
    assert read_report(settings().report) == first


def test_the_command_line_goes_on_or_begins_anew(settings, tmp_path):
    run_settings = settings(sizes=[3] * 4, out=tmp_path / "results")
    (run_settings.events / "evt_3.csv").write_text("no hits")
    first = run_clients(run_settings)
    words = ("run-clients", "-s", run_settings.server, "-n", 1, "--json")
    again = exatrkx_hpc(*words, cwd=tmp_path)
    assert again.returncode == IncompleteRun.exit_code and json.loads(again.stdout)["done_before"] == first.done == 3
    assert "3 of 4 events were done before, 0 are left; 1 in quarantine are skipped" in again.stderr
    (run_settings.events / "evt_3.csv").write_text("1,2,3\n")
    fresh = exatrkx_hpc(*words, "--fresh", "--quiet", cwd=tmp_path)
    assert fresh.returncode == 0 and json.loads(fresh.stdout)["done_now"] == 4


def test_new_events_are_done_and_the_others_are_not_done_again(settings):
    run_clients(settings(sizes=[3] * 5))
    (settings().events / "evt_9.csv").write_text("\n")
    said = []
    report = run_clients(settings(), tell=said.append)
    assert (report.events, report.done_now) == (6, 1)
    assert [str(news) for news in said] == ["5 of 6 events were done before, 1 are left; events: 1 new"]


def test_the_ledger_says_of_each_event_what_was_read_and_what_was_written(settings):
    run_settings = settings(sizes=[3, 4])
    run_clients(run_settings)
    columns = "name, attempts, retries, items, version, size, lower(hex(sha256)), result_size, run, ended > 1e9"
    first, second = ledger_rows(run_settings, columns)
    digest = hashlib.sha256((run_settings.events / "evt_1.csv").read_bytes()).hexdigest()
    size = (run_settings.events / "evt_1.csv").stat().st_size
    labels = (run_settings.folder / "evt_1.csv").stat().st_size
    assert first[:4] == ("evt_0", 1, 0, 3)
    assert second == ("evt_1", 1, 0, 4, "1", size, digest, labels, 1, 1)


def test_fresh_begins_anew_once_the_endpoint_is_ready(settings):
    run_settings = settings(sizes=[3] * 5)
    run_clients(run_settings)
    before = label_files(run_settings)
    with pytest.raises(EndpointError):
        run_clients(settings(fresh=True, server=f"127.0.0.1:{free_port()}"))
    assert label_files(run_settings) == before
    report = run_clients(settings(fresh=True))
    assert (report.done, report.done_before) == (5, 0) and label_files(run_settings) == before


def test_the_ledger_has_the_member_that_answered_where_the_balancer_says_so(settings):
    with fake_triton("--member", "10.0.0.1:8001, 10.0.0.2:8001") as fake:
        run_clients(settings(sizes=[3], server=fake.server))
    assert ledger_rows(settings(), "member, version") == [("10.0.0.2:8001", "1")]


# Ledgers that do not fit


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"mode": "fused"},
            "was made with mode ensemble, but this run uses mode fused; choose another -o, or start over",
        ),
        ({"model": "other"}, "was made with model exatrkx, but this run uses model other; choose another -o"),
    ],
)
def test_labels_of_another_kind_are_not_mixed_in(settings, changes, complaint):
    run_clients(settings(sizes=[3] * 2))
    with pytest.raises(OutputError, match=complaint):
        run_clients(settings(**changes))
    assert len(label_files(settings())) == 2


def test_labels_of_another_version_of_the_model_are_not_mixed_in(settings):
    run_clients(settings(sizes=[3] * 2))
    (settings().events / "evt_9.csv").write_text("\n")
    with fake_triton("--version", "3") as fake:
        refused = r"of version 1 of the model, and 127\.0\.0\.1:\d+ serves version 3; choose another -o, or start over"
        with pytest.raises(OutputError, match=refused):
            run_clients(settings(server=fake.server))
        assert run_clients(settings(server=fake.server, fresh=True)).version == "3"


def test_another_dataset_is_refused_and_nothing_is_touched(settings, tmp_path):
    run_clients(settings(sizes=[3] * 3))
    before = label_files(settings())
    other = make_events(tmp_path / "other", [5] * 4)
    with pytest.raises(InputError, match=r"was created for the events in .*/events; those in .*/other differ"):
        run_clients(settings(events=other))
    assert label_files(settings()) == before and len(ledger_rows(settings())) == 3
    assert run_clients(settings()).done == 3


def test_a_damaged_ledger_is_never_overwritten_by_itself(settings):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    (run_settings.out / "ledger.sqlite").write_text("torn")
    with pytest.raises(OutputError, match=r"ledger\.sqlite is damaged \(file is not a database\); restore it"):
        run_clients(run_settings)
    assert len(label_files(run_settings)) == 3 and (run_settings.out / "ledger.sqlite").read_text() == "torn"
    assert run_clients(settings(fresh=True)).done_now == 3


def test_an_event_that_changed_is_refused_by_name_or_done_again(settings):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    (run_settings.events / "evt_1.csv").write_text("1,2,3\n")
    with pytest.raises(InputError, match=r"events changed since they were done \(evt_1\); .*--accept-changes"):
        run_clients(run_settings)
    report = run_clients(settings(accept_changes=True))
    assert (report.done_before, report.done_now) == (2, 1)
    assert assert_whole(run_settings.events, run_settings.folder) == 3


# Events that fail


def test_an_event_that_fails_for_itself_goes_to_quarantine_and_stops_nobody(settings):
    run_settings = settings(sizes=[3] * 4)
    (run_settings.events / "evt_2.csv").write_text("1,nan,3\n")
    report = run_clients(run_settings)
    note = json.loads((run_settings.out / "quarantine" / "evt_2.json").read_text())
    assert (note["event"], note["kind"]) == ("evt_2", "input") and "nan is not finite" in note["reason"]
    assert note["file"] == str(run_settings.events / "evt_2.csv") and note["server"] == run_settings.server
    assert (report.done, report.failures, report.failed_before) == (3, 1, 0)

    again = run_clients(run_settings)
    assert (again.done_now, again.failures, again.failed_before, again.not_tried) == (0, 1, 1, 0)
    with pytest.raises(IncompleteRun, match=r"3 of 4 events have results; first failure: evt_2: .*nan is not finite"):
        again.check()
    assert run_clients(settings(retry_failed=True)).failed_before == 0
    assert ledger_rows(run_settings, "state, attempts")[2] == ("quarantined", 2)

    (run_settings.events / "evt_2.csv").write_text("1,2,3\n")  # mended
    run_clients(run_settings).check()
    assert list((run_settings.out / "quarantine").iterdir()) == []


def test_an_event_that_vanishes_or_changes_during_the_run(settings):
    run_settings = settings(sizes=[3] * 60, in_flight=1)

    def meddle(tally):
        if tally.done == 1:
            (run_settings.events / "evt_58.csv").unlink()
            (run_settings.events / "evt_59.csv").write_text("1,2,3\n" * 8)

    report = run_clients(run_settings, meddle)
    assert report.done == 59 and [(one.event, one.kind) for one in report.failed] == [("evt_58", "file")]
    assert "cannot read" in report.failed[0].reason and not (run_settings.out / "quarantine").exists()
    with pytest.raises(InputError, match=r"1 event is missing from .* \(evt_58\)"):  # what was sent of evt_59 is known
        run_clients(run_settings)
    (run_settings.events / "evt_58.csv").write_text("1,2,3\n")
    run_clients(run_settings).check()
    assert assert_whole(run_settings.events, run_settings.folder) == 60


def test_what_the_endpoint_is_to_blame_for_is_tried_again(settings):
    with fake_triton("--fail", "1", "--fail-status", "UNAVAILABLE", "--delay", "0.01") as fake:
        report = run_clients(settings(sizes=[3] * 8, server=fake.server, patience=0.0, in_flight=1))
    assert {one.kind for one in report.failed} <= {"endpoint"}
    again = run_clients(settings())
    again.check()
    assert again.done == 8 and not (settings().out / "quarantine").exists()


def test_a_model_that_is_loaded_late_is_waited_for_and_blamed_on_no_event(settings):
    with fake_triton("--unknown", "3") as fake:
        assert run_clients(settings(sizes=[3] * 4, server=fake.server)).retries == 3
    with fake_triton("--unknown", "100") as fake:
        report = run_clients(settings(server=fake.server, patience=0.0, in_flight=1, fresh=True))
    assert {one.kind for one in report.failed} == {"endpoint"} and "is not found" in report.failed[0].reason
    assert run_clients(settings()).done == 4


def test_a_broken_model_does_not_put_the_whole_dataset_into_quarantine(settings):
    refused = r"100 events in a row failed in the model, .*--retry-failed"
    with fake_triton("--drop-label") as fake, pytest.raises(StoppedRun, match=refused) as stopped:
        run_clients(settings(sizes=[1] * 160, server=fake.server))
    assert 100 <= stopped.value.report.failures < 110
    report = run_clients(settings(retry_failed=True))
    assert (report.done, report.failures) == (160, 0)


def test_as_many_bad_events_in_all_do_not_stop_a_run(settings):
    broken = ("--fail", "100000", "--fail-status", "INVALID_ARGUMENT", "--good-each", "150")
    with fake_triton(*broken) as fake:
        report = run_clients(settings(sizes=[1] * 200, server=fake.server, in_flight=1))
    assert (report.done + report.failures, report.stopped) == (200, None) and report.done >= 2


# Kills


def test_kills_at_random_moments_cost_no_result_and_double_none(settings, tmp_path):
    run_settings = settings(sizes=[*range(300)], out=tmp_path / "undisturbed", workers=2)
    run_clients(run_settings)
    undisturbed = label_files(run_settings)
    randomly = random.Random(20)
    with fake_triton("--delay", "0.02") as fake:
        run_settings = settings(server=fake.server, in_flight=2, workers=2)
        for kill in range(6):
            with driver(run_settings, tmp_path / f"log{kill}") as child:
                done = _number_of(run_settings.folder)
                until(lambda: _number_of(run_settings.folder) > done or child.returncode() is not None, what="labels")  # noqa: B023
                time.sleep(randomly.uniform(0, 0.2))
                if not kill_something(child, randomly):
                    time.sleep(randomly.uniform(0, 0.2))
                    child.send(signal.SIGKILL)
                child.wait(20)
                workers = workers_of(child.pid)
                until(lambda: not any(one.is_running() for one in workers), what="no worker")  # noqa: B023
        torn = max(run_settings.folder.glob("[!.]*.csv"), key=lambda file: file.stat().st_mtime_ns)
        os.truncate(torn, torn.stat().st_size // 2)  # a torn last write
        report = run_clients(settings(workers=2))
    assert (report.done, report.failed) == (300, ()) and 0 < report.done_before < 300
    assert label_files(run_settings) == undisturbed
    assert all(row == ("done", 1) for row in ledger_rows(run_settings, "state, result_size IS NOT NULL"))


def _number_of(labels: Path) -> int:
    return len(list(labels.glob("[!.]*.csv")))


def test_a_full_disk_costs_only_time(settings, tmp_path):
    with tiny_disk(tmp_path / "disk", "512k") as disk:
        run_settings = settings(sizes=[50] * 60, out=disk / "out")
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 320_000)
        with pytest.raises(OutputError, match="No space left on device"):
            run_clients(run_settings)
        ballast.unlink()
        report = run_clients(run_settings)
        assert report.done == assert_whole(run_settings.events, run_settings.folder) == 60
        assert {state for _, state in ledger_rows(run_settings)} == {"done"}


# Sizes


def test_an_output_on_another_file_system(settings):
    with contextlib.ExitStack() as stack:
        memory = Path("/dev/shm")
        if not os.access(memory, os.W_OK):
            pytest.skip("no second file system")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        assert run_clients(settings(sizes=[3] * 4, out=folder / "out")).done == 4


def test_more_workers_than_cores_work_and_are_warned_of(settings):
    cores, said = len(os.sched_getaffinity(0)), []
    run_clients(settings(sizes=[3] * 20, workers=4 * cores), tell=said.append)
    assert said == []
    report = run_clients(settings(workers=4 * cores + 1, fresh=True), tell=said.append)
    assert report.done == 20 and len(said) == 1
    assert str(said[0]).startswith(f"-n {4 * cores + 1} is far more than the CPU cores of this machine ({cores})")
