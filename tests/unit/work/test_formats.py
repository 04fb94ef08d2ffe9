"""One run over each format of events: the same labels, the same ledger, and the same care for what changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fakes.running import fake_triton
from parquet_events import write
from runs import label_files, ledger_rows

from exatrkx_hpc.base.errors import InputError, OutputError
from exatrkx_hpc.work.events.source import FORMATS, Reader, find_events, format_of
from exatrkx_hpc.work.run.run import Settings, run_clients

pytest.importorskip("pyarrow")
EVENTS = {f"evt_{number}": np.full((number + 1, 3), number / 8, dtype=np.float32) for number in range(12)}


def write_events(folder: Path, form: str, events=EVENTS) -> Path:
    folder.mkdir(exist_ok=True)
    if form == "parquet":
        half = list(events.items())
        write(folder / "first.parquet", half[::2], group=10)
        write(folder / "second.parquet", half[1::2], group=30)
        return folder
    for name, values in events.items():
        path = folder / f"{name}.{form}"
        if form == "csv":
            np.savetxt(path, values, delimiter=",")
        elif form == "npy":
            np.save(path, values.astype(np.float64))
        else:
            np.savez(path, hits=values)
    return folder


@pytest.fixture
def run(tmp_path, server):
    """Run over `events`, with results in out/; returns the settings and the report."""

    def go(events: Path, out="out", **changes):
        settings = Settings(server=server, events=events, out=tmp_path / out, **changes)
        return settings, run_clients(settings)

    return go


def test_each_format_gives_the_same_labels(run, tmp_path):
    found, read = {}, {}
    for form in FORMATS:
        events = write_events(tmp_path / form, form)
        assert format_of(events) == form
        read[form] = {event.name: Reader().read(event).tensors["hits"].tolist() for event in find_events(events)}
        settings, report = run(events, out=f"out-{form}", workers=2 if form == "parquet" else 1)
        assert (report.done, report.failed, report.items) == (12, (), sum(map(len, EVENTS.values())))
        found[form] = label_files(settings)
        again, second = run(events, out=f"out-{form}")
        assert second.done_now == 0 and label_files(again) == found[form]
    assert len(found["csv"]) == 12 and all(labels == found["csv"] for labels in found.values())
    assert all(hits == read["csv"] for hits in read.values())
    with pytest.raises(OutputError, match=r"was made with format csv, but this run uses format npy; choose another -o"):
        run(tmp_path / "npy", out="out-csv")


def test_a_folder_of_several_formats_is_refused(tmp_path, run):
    write_events(tmp_path / "events", "csv", {"a": EVENTS["evt_1"]})
    write_events(tmp_path / "events", "npy", {"b": EVENTS["evt_1"]})
    (tmp_path / "events" / ".hidden.npz").touch()
    with pytest.raises(InputError, match=r"holds events in several formats \(a\.csv and b\.npy\); keep one format"):
        run(tmp_path / "events")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_bad_event_fails_alone_and_is_put_into_quarantine(run, tmp_path, form):
    bad = {**EVENTS, "evt_3": np.array([[0.0, np.nan, 0.0]], dtype=np.float32)}
    settings, report = run(write_events(tmp_path / "events", form, bad))
    assert report.done == 11 and [(one.event, one.kind) for one in report.failed] == [("evt_3", "input")]
    note = json.loads((settings.out / "quarantine" / "evt_3.json").read_text())
    file = {"npy": "evt_3.npy", "parquet": "second.parquet"}[form]
    assert note["file"] == str(tmp_path / "events" / file)
    assert {"npy": "hit 0 has nan", "parquet": "row 0 of hits is not finite"}[form] in note["reason"]


def test_a_parquet_file_that_is_written_again_with_the_same_events(run, tmp_path):
    folder = write_events(tmp_path / "events", "parquet")
    settings, _ = run(folder)
    kept = label_files(settings)
    events = list(EVENTS.items())
    for path in folder.iterdir():
        path.unlink()
    write(folder / "all.parquet", [*reversed(events), ("evt_12", EVENTS["evt_5"])], group=4)
    _, report = run(folder)
    assert (report.done_before, report.done) == (12, 13) and kept.items() <= label_files(settings).items()
    assert set(ledger_rows(settings, "file")) == {("all.parquet",)}
    assert run(folder / "all.parquet")[1].done_now == 0


def renamed(file: Path) -> None:
    file.rename(file.with_name("third.parquet"))


def turned_round(file: Path) -> None:
    """As if a tool that keeps times had written it."""
    kept = file.stat().st_mtime_ns
    write(file, list(reversed(list(EVENTS.items())[::2])), group=10)
    os.utime(file, ns=(kept, kept))


@pytest.mark.parametrize("moved", [renamed, turned_round])
def test_events_that_are_elsewhere_now_are_found_again(run, tmp_path, moved):
    folder = write_events(tmp_path / "events", "parquet")
    settings, _ = run(folder)
    moved(folder / "first.parquet")
    kept = ledger_rows(settings, "name, sha256")
    (settings.folder / "evt_0.csv").unlink()
    _, report = run(folder)
    assert (report.done, report.done_now, report.failed) == (12, 1, ())
    assert ledger_rows(settings, "name, sha256") == kept, "it read the hits of another event"


def test_events_of_parquet_files_that_changed_or_are_gone(run, tmp_path):
    folder = write_events(tmp_path / "events", "parquet")
    settings, _ = run(folder)
    events = [(name, values + (name == "evt_4")) for name, values in EVENTS.items()][2::2]
    write(folder / "first.parquet", events)
    os.utime(folder / "first.parquet", ns=(7, 7))
    with pytest.raises(InputError, match=r"since they were done \(evt_4\); 1 event is missing .* \(evt_0\); restore"):
        run(folder)
    _, report = run(folder, accept_changes=True)
    assert (report.events, report.done_before, report.done_now) == (11, 10, 1)
    assert ledger_rows(settings, "name, mtime_ns")[3] == ("evt_4", 7)


def test_a_parquet_file_that_changes_during_the_run(run, tmp_path):
    folder, changed = write_events(tmp_path / "events", "parquet"), []

    def change(tally):
        if tally.done == 2 and not changed:
            changed.append(tally)
            os.utime(folder / "second.parquet", ns=(7, 7))

    with fake_triton("--delay", "0.05") as fake:
        settings = Settings(server=fake.server, events=folder, out=tmp_path / "out", in_flight=1)
        report = run_clients(settings, change)
    assert {one.kind for one in report.failed} == {"file"} and report.done + len(report.failed) == 12
    assert "second.parquet changed since the run began" in report.failed[0].reason
    assert run(folder)[1].done == 12
