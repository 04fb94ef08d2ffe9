"""What lies in a folder of events: what cannot be read fails by name, what is passed over is counted."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from parquet_events import write as write_parquet
from runs import ledger_rows, make_events

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.convert import events_to_events
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import PassedOver, Reader, find_events, format_of, scan_events
from exatrkx_hpc.work.events.values import EventFile, UnreadableEvent
from exatrkx_hpc.work.news import FilesPassedOver, NoFinalNewline
from exatrkx_hpc.work.nodes.run import here, run_sharded
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import Settings, run_clients
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD


def spoil(events, what):
    """Put something unreadable in the place of evt_1."""
    path = events / "evt_1.csv"
    path.unlink()
    if what == "dangling link":
        path.symlink_to(events / "nowhere")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "0 bytes":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


WHY = {
    "dangling link": "No such file",
    "loop": "symbolic links",
    "0 bytes": "is empty, 0 bytes",
    "folder": "Is a directory",
    "pipe": "neither a file nor a folder",
    "socket": "cannot read",
}


@pytest.mark.parametrize("what", WHY)
def test_what_matches_and_cannot_be_read_fails_as_a_file(settings, what):
    run_settings = settings(sizes=[3] * 3)
    spoil(run_settings.events, what)
    report = run_clients(run_settings)
    assert (report.events, report.done) == (3, 2)
    assert [(one.event, one.kind) for one in report.failed] == [("evt_1", "file")] and WHY[what] in report.failed[
        0
    ].reason
    assert ledger_rows(run_settings)[1] == ("evt_1", "failed")
    assert run_clients(settings()).failures == 1, "a resumed run finds the same event"
    (run_settings.events / "evt_1.csv").rmdir() if what == "folder" else (run_settings.events / "evt_1.csv").unlink()
    (run_settings.events / "evt_1.csv").write_text("1,2,3\n")
    run_clients(settings()).check()


def test_a_file_without_permission_fails_as_a_file(tmp_path):
    closed = tmp_path / "closed.csv"
    closed.write_text("1,2,3\n")
    closed.chmod(0)
    root = os.geteuid() == 0
    if root:  # root reads everything, so it becomes nobody for a while
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadableEvent, match="Permission denied"):
            Reader().read(EventFile(name="closed", path=closed))
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_does_not_choose_the_format(tmp_path):
    events = make_events(tmp_path / "events", [3])
    (events / "more.npy").mkdir()
    assert format_of(events) == "csv"
    passed = PassedOver()
    assert [stamp.name for stamp in scan_events(events, "csv", passed=passed)] == ["evt_0"]
    assert passed.counts == {"folder": 1}


def test_an_event_of_no_hits_is_a_file_that_says_so(settings, tmp_path):
    run_settings = settings(sizes=[3])
    for name, text in (("evt_1", "\n"), ("evt_2", "")):
        (run_settings.events / f"{name}.csv").write_text(text)
    report = run_clients(run_settings)
    assert (report.done, report.empty) == (2, 1) and [one.event for one in report.failed] == ["evt_2"]
    assert read_report(run_settings.report).empty == 1
    (run_settings.events / "evt_2.csv").unlink()
    events_to_events(run_settings.events, tmp_path / "npy", form="npy")
    events_to_events(tmp_path / "npy", tmp_path / "csv", form="csv")
    assert [len(read_hits(event.path)) for event in find_events(tmp_path / "csv")] == [3, 0]


def test_a_file_that_is_cut_in_its_last_number_is_not_done(settings):
    run_settings = settings(sizes=[3] * 12)
    cut = run_settings.events / "evt_11.csv"
    cut.write_bytes(cut.read_bytes()[:-8])
    assert len(read_hits(cut)) == 3, "it reads as a whole file"
    report = run_clients(run_settings)
    assert report.done == 11 and [(one.event, one.kind) for one in report.failed] == [("evt_11", "file")]
    assert "its last number may be cut; write it again, or end its last line" in report.failed[0].reason
    with cut.open("a") as file:
        file.write("\n")
    run_clients(settings()).check()


def test_files_without_a_final_newline_are_a_custom_that_is_told(settings):
    run_settings = settings(sizes=[3] * 3)
    for path in run_settings.events.iterdir():
        path.write_bytes(path.read_bytes().rstrip())
    told = []
    run_clients(run_settings, tell=told.append).check()
    (news,) = (one for one in told if isinstance(one, NoFinalNewline))
    assert news.looked_at == 3 and "cannot be told from a whole one" in str(news)


def test_what_is_passed_over_is_told_by_kind(settings):
    run_settings = settings(sizes=[3] * 2)
    for name in (".hidden.csv", "evt_0-truth.csv", "evt_1-cells.csv", "notes.txt", "more.txt", "README", "b.json"):
        (run_settings.events / name).write_text("x")
    (run_settings.events / "truth").mkdir()
    (run_settings.events / "old").mkdir()
    kinds = {"*.json": 1, "*.txt": 2, "companion": 2, "folder": 1, "hidden": 1, "truth folder": 1, "without suffix": 1}
    told = []
    report = run_clients(run_settings, tell=told.append)
    report.check()
    assert report.passed_over == kinds and read_report(run_settings.report).passed_over == kinds
    (news,) = told
    assert isinstance(news, FilesPassedOver) and news.kinds == kinds
    assert str(news).endswith("1 *.json, 2 *.txt, 2 companion, 1 folder, 1 hidden, 1 truth folder, 1 without suffix")
    assert run_clients(settings()).passed_over == kinds


def test_a_companion_without_its_event_is_an_event(tmp_path):
    (tmp_path / "evt_0-truth.csv").write_text("1,2,3\n")
    (tmp_path / "a-hits.csv").write_text("1,2,3\n")
    (tmp_path / "a-particles.csv").write_text("1,2,3\n")
    assert sorted(stamp.name for stamp in scan_events(tmp_path, "csv")) == ["a-hits", "evt_0-truth"]


def test_the_kinds_of_suffixes_are_bounded(tmp_path):
    make_events(tmp_path / "events", [1])
    for number in range(100):
        (tmp_path / "events" / f"log.{number}").touch()
    passed = PassedOver()
    list(scan_events(tmp_path / "events", "csv", passed=passed))
    assert len(passed.counts) == PassedOver.MOST + 1 and sum(passed.counts.values()) == 100


@pytest.mark.parametrize("run", [run_clients, lambda one: run_sharded(one, here(print), shards=2)])
def test_another_number_of_events_than_expected_is_refused_at_once(settings, run):
    run_settings = settings(sizes=[3] * 3, expect=4)
    (run_settings.events / ".evt_3.csv").touch()
    with pytest.raises(InputError, match=r"has 3 events, not 4 \(passed over: 1 hidden\); restore the missing ones"):
        run(run_settings)
    assert not run_settings.out.exists()
    assert run(settings(expect=3)).done == 3


def test_the_command_line_expects_a_number(server, tmp_path):
    make_events(tmp_path / "events", [3] * 2)
    line = complaint(exatrkx_hpc("run-clients", "-s", server, "--expect", 3, cwd=tmp_path), InputError.exit_code)
    assert "has 2 events, not 3" in line


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_longest_name_works_and_a_longer_one_fails_alone(settings, form):
    run_settings = settings(sizes=[3], result_format=form)
    longest = "é" * 50 + "n" * (WORKLOAD.longest_name - 100)
    for name in (longest, longest + "x", "n" * 245):
        (run_settings.events / f"{name}.csv").write_text("1,2,3\n")
    report = run_clients(run_settings)
    assert (report.events, report.done) == (4, 2) and {one.kind for one in report.failed} == {"file"}
    assert f"need one of at most {WORKLOAD.longest_name}; rename" in report.failed[0].reason
    (run_settings.events / f"{longest}.csv").write_text("no hits")
    run_clients(settings(accept_changes=True, result_format=form))
    assert len(list((run_settings.out / "quarantine").iterdir())) == 1, "its note has the longest name, too"


def test_a_long_name_in_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "e.parquet", [("n" * (WORKLOAD.longest_name + 1), np.zeros((1, 3)))])
    with pytest.raises(InputError, match=f"is longer than {WORKLOAD.longest_name} bytes"):
        find_events(tmp_path)


def test_a_parquet_file_that_cannot_be_read_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    for name, what in (("a", "No such file"), ("b", "is a folder")):
        folder = tmp_path / name
        folder.mkdir()
        write_parquet(folder / "e.parquet", [("evt_0", np.zeros((1, 3)))])
        (folder / "f.parquet").symlink_to("nowhere") if name == "a" else (folder / "f.parquet").mkdir()
        with pytest.raises(InputError, match=what):
            find_events(folder)


def test_settings_check_what_is_expected(tmp_path):
    with pytest.raises(Exception, match="--expect must be at least 1"):
        Settings(server="h:1", events=tmp_path, out=tmp_path / "o", expect=0)
