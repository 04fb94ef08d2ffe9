from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from ledgers import result

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.source import read_event
from exatrkx_hpc.work.ledger.file import create
from exatrkx_hpc.work.ledger.ledger import Counts, Ledger
from exatrkx_hpc.work.ledger.match_events import Changes, match_events
from exatrkx_hpc.work.ledger.match_results import match_quarantine, match_results, sweep
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.outcome import Failed


@pytest.fixture
def events(tmp_path):
    """A folder of six events."""
    folder = tmp_path / "events"
    folder.mkdir()
    for number in range(6):
        (folder / f"evt_{number}.csv").write_text(f"{number},0,0\n")
    return folder


@pytest.fixture
def labels(tmp_path):
    """An empty folder for label files."""
    folder = tmp_path / "labels"
    folder.mkdir()
    return folder


@pytest.fixture
def ledger(tmp_path, events):
    """An open ledger of those events."""
    create(tmp_path / "ledger.sqlite", {"folder": os.path.realpath(events)})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert match_events(ledger, events) == Changes(new=6)
        yield ledger


def do(ledger: Ledger, events: Path, labels: Path, *names: str) -> None:
    """Do these events as a run does."""
    ledger.begin_run(server="h:1", version="1")
    for name in names:
        read = read_event(events / f"{name}.csv")
        text = f"labels of {name}\n"
        (labels / f"{name}.csv").write_text(text)
        stamp = {"size": read.size, "mtime_ns": read.mtime_ns, "sha256": read.sha256}
        done = result(name, **stamp)
        written = {"result_size": len(text), "result_sha256": hashlib.sha256(text.encode()).hexdigest()}
        ledger.done(type(done)(**{**vars(done), **written}))
    ledger.end_run(None)


def states(ledger: Ledger) -> str:
    """Return the first letter of each event's state, in natural order."""
    return "".join(state[0] for (state,) in ledger.db.execute("SELECT state FROM events ORDER BY key"))


def test_a_folder_as_it_was_changes_nothing(ledger, events, labels):
    do(ledger, events, labels, "evt_0", "evt_1")
    assert match_events(ledger, events) == Changes() and match_results(ledger, Results(labels.parent)) == 0
    assert states(ledger) == "ddwwww"


def test_new_events_wait_in_their_natural_place(ledger, events, labels, tmp_path):
    do(ledger, events, labels, "evt_0", "evt_1", "evt_2", "evt_3")
    (events / "evt_00.csv").write_text("")
    (events / "evt_10.csv").write_text("")
    changes = match_events(ledger, events)
    assert changes == Changes(new=2)
    ledger.begin_run(server="h:1", version="1")
    assert [one.name for one in ledger.waiting(events)] == ["evt_00", "evt_4", "evt_5", "evt_10"]


def test_a_done_event_that_changed_is_named_and_stays_as_it_is(ledger, events, labels):
    do(ledger, events, labels, "evt_0", "evt_1", "evt_2")
    (events / "evt_1.csv").write_text("9,0,0\n")  # of the same size
    (events / "evt_6.csv").write_text("")
    with pytest.raises(
        InputError, match=r"events changed since they were done \(evt_1\); .*--accept-changes"
    ) as caught:
        match_events(ledger, events)
    assert "\n" not in str(caught.value) and states(ledger) == "dddwww"
    assert match_events(ledger, events, accept=True) == Changes(new=1, changed=1)
    assert states(ledger) == "dwdwwww"
    assert match_results(ledger, Results(labels.parent)) == 0 and not (labels / "evt_1.csv").exists()


def test_a_file_that_was_only_touched_is_the_same_event(ledger, events, labels):
    do(ledger, events, labels, "evt_0", "evt_1")
    os.utime(events / "evt_1.csv")
    assert match_events(ledger, events) == Changes() and states(ledger) == "ddwwww"


def test_an_event_that_is_gone_is_named(ledger, events, labels):
    do(ledger, events, labels, "evt_0", "evt_1")
    for number in (0, 1, 4, 5):
        (events / f"evt_{number}.csv").unlink()
    with pytest.raises(
        InputError, match=r"4 events are missing from .*/events \(evt_0, evt_1, evt_4, …\); restore them"
    ):
        match_events(ledger, events)
    assert states(ledger) == "ddwwww"
    assert match_events(ledger, events, accept=True) == Changes(gone=4)
    assert states(ledger) == "ww" and match_results(ledger, Results(labels.parent)) == 0
    assert (labels / "evt_0.csv").exists()  # of no event of this folder: it stays


def test_an_event_that_was_mended_leaves_quarantine(ledger, events, labels):
    ledger.begin_run(server="h:1", version="1")
    ledger.fail(Failed(event="evt_2", kind="input", reason="nan"))
    ledger.fail(Failed(event="evt_3", kind="input", reason="nan"))
    ledger.end_run(None)
    (events / "evt_2.csv").write_text("mended")
    assert match_events(ledger, events) == Changes() and states(ledger) == "wwwqww"


def test_an_event_keeps_its_note_until_it_has_a_result(ledger, events, labels, tmp_path):
    do(ledger, events, labels, "evt_1")
    ledger.begin_run(server="h:1", version="1")
    ledger.fail(Failed(event="evt_2", kind="input", reason="nan"))
    ledger.fail(Failed(event="evt_3", kind="endpoint", reason="dead"))
    ledger.end_run(None)
    for name in ("evt_1", "evt_2", "evt_3", "evt_99"):
        (tmp_path / f"{name}.json").write_text("{}")
    ledger.release()
    match_quarantine(ledger, tmp_path)
    assert sorted(note.name for note in tmp_path.glob("*.json")) == ["evt_2.json", "evt_3.json"]
    match_quarantine(ledger, tmp_path / "nowhere")


def test_a_folder_that_moved_is_the_same_dataset_and_another_is_not(ledger, events, labels, tmp_path):
    do(ledger, events, labels, "evt_0")
    moved = tmp_path / "moved"
    moved.mkdir()
    for number in range(6):  # copied, with other times
        (moved / f"evt_{number}.csv").write_text(f"{number},0,0\n")
    assert match_events(ledger, moved) == Changes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "run_7.csv").write_text("")
    refused = r"ledger\.sqlite was created for the events in .*/events; those in .*/other differ: 6 events are missing"
    with pytest.raises(InputError, match=refused):
        match_events(ledger, other)
    assert states(ledger) == "dwwwww"


def test_a_folder_without_events_and_no_folder(ledger, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no events \(\*\.csv, "):
        match_events(ledger, tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        match_events(ledger, tmp_path / "nowhere")
    assert states(ledger) == "wwwwww"


def test_label_files_that_are_missing_or_torn_are_made_again(ledger, events, labels):
    do(ledger, events, labels, *(f"evt_{number}" for number in range(5)))
    (labels / "evt_1.csv").unlink()
    os.truncate(labels / "evt_2.csv", 3)
    assert match_results(ledger, Results(labels.parent)) == 2 and states(ledger) == "dwwddw"
    assert not (labels / "evt_2.csv").exists()


def test_the_labels_that_were_written_last_are_read(ledger, events, labels):
    do(ledger, events, labels, "evt_0", "evt_1", "evt_2")
    for name in ("evt_0", "evt_1"):  # as a power cut leaves them
        (labels / f"{name}.csv").write_bytes(bytes((labels / f"{name}.csv").stat().st_size))
    with ledger.db:
        ledger.db.execute("UPDATE events SET ended = ended - 600 WHERE name = 'evt_0'")
    assert match_results(ledger, Results(labels.parent)) == 1 and states(ledger) == "dwdwww"


def test_label_files_of_no_done_event_and_parts_are_removed(ledger, events, labels):
    do(ledger, events, labels, "evt_0")
    (labels / ".evt_1.csv.swp").write_text("an editor's")
    for name in ("evt_1.csv", ".evt_0.csv.k2j3h4_9", "another_7.csv", "notes.txt"):
        (labels / name).write_text("9\n")
    assert match_results(ledger, Results(labels.parent)) == 0
    assert sorted(file.name for file in labels.iterdir()) == [
        ".evt_1.csv.swp",
        "another_7.csv",
        "evt_0.csv",
        "notes.txt",
    ]
    (labels / ".evt_1.csv.aaaaaaaa").write_text("")
    sweep(Results(labels.parent))
    assert len(list(labels.iterdir())) == 4 and states(ledger) == "dwwwww"


def test_a_ledger_counts_what_its_folder_holds(ledger):
    assert ledger.counts() == Counts(waiting=6)
