"""An output folder has an owner: what this program did not write is never removed or replaced."""

from __future__ import annotations

import dataclasses
import json

import pytest
from command import complaint, exatrkx_hpc
from fakes.running import free_port
from runs import assert_whole, label_files, make_events

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import EndpointError, OutputError
from exatrkx_hpc.farm import run_clients as run_any
from exatrkx_hpc.work.nodes.run import here, run_sharded
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.owner import NAME
from exatrkx_hpc.work.results.shards import Shard
from exatrkx_hpc.work.run.run import run_clients


def everything(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "labels/evt_1.csv",
        "labels/another.csv",
        "labels/part-evt_1.labels.parquet",
        "report.json",
        "report.html",
        "times.csv",
        "ledger.sqlite",
        "quarantine/evt_1.json",
        "shards/notes.txt",
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_others_are_refused_and_stay(settings, tmp_path, name, fresh):
    run_settings = settings(sizes=[3] * 2, out=tmp_path / "theirs", fresh=fresh)
    path = run_settings.out / name
    path.parent.mkdir(parents=True)
    path.write_text("of somebody else")
    before = everything(run_settings.out)
    first = name.partition("/")[0] if name.startswith("shards") else name
    refused = rf"theirs has files that this program did not write, .* \({first}\); move them elsewhere, or choose"
    sharded = lambda one: run_sharded(one, here(print), shards=2)  # noqa: E731 - it refuses a ledger by itself
    for run in (run_clients, *(() if name == "ledger.sqlite" else (sharded,))):
        with pytest.raises(OutputError, match=refused):
            run(run_settings)
        assert everything(run_settings.out) == before


def test_the_truth_beside_the_events_is_safe(server, tmp_path):
    """`-d DATA/events -o DATA`, with `DATA/labels` and `DATA/truth` beside: nothing of it is touched."""
    events = make_events(tmp_path / "DATA" / "events", [3] * 3)
    for folder in ("labels", "truth"):
        (tmp_path / "DATA" / folder).mkdir()
        for event in events.iterdir():
            (tmp_path / "DATA" / folder / event.name).write_text("1\n1\n2\n")
    before = everything(tmp_path / "DATA")
    words = ("run-clients", "-s", server, "-d", "DATA/events", "-o", "DATA", "-n", 1)
    for more in ((), ("--fresh",)):
        line = complaint(exatrkx_hpc(*words, *more, cwd=tmp_path), OutputError.exit_code)
        assert "labels/evt_" in line and line.endswith("move them elsewhere, or choose another -o")
        assert everything(tmp_path / "DATA") == before
    (tmp_path / "DATA" / "labels").rename(tmp_path / "DATA" / "true_labels")
    for more in ((), ("--fresh",)):
        done = exatrkx_hpc(*words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    after = everything(tmp_path / "DATA")
    assert {name: data for name, data in after.items() if name in before} == {
        name: data for name, data in before.items() if not name.startswith("labels/")
    } | {name: after[name] for name in after if name.startswith("labels/")}
    assert all(after[name.replace("labels", "true_labels")] == before[name] for name in before if "labels" in name)


def test_a_folder_that_is_taken_says_whose_it_is(settings):
    run_settings = settings(sizes=[3])
    with pytest.raises(EndpointError):
        run_clients(settings(server=f"127.0.0.1:{free_port()}"))
    assert not run_settings.out.exists(), "a run that is refused takes nothing"
    run_clients(run_settings)
    owner = json.loads((run_settings.out / NAME).read_text())
    assert (owner["program"], owner["version"]) == ("exatrkx-hpc", __version__) and len(owner["run"]) == 32
    run_clients(settings(fresh=True))
    assert json.loads((run_settings.out / NAME).read_text()) == owner


@pytest.mark.parametrize(("text", "why"), [('{"program": "x"}', "does not say"), ("{", "does not say")])
def test_a_mark_that_does_not_say_it_is_refused(settings, text, why):
    run_settings = settings(sizes=[3])
    run_settings.out.mkdir()
    (run_settings.out / NAME).write_text(text)
    with pytest.raises(OutputError, match=why):
        run_clients(run_settings)


def test_the_folder_of_another_program_is_refused(settings):
    run_settings = settings(sizes=[3])
    run_clients(run_settings)
    owner = json.loads((run_settings.out / NAME).read_text())
    (run_settings.out / NAME).write_text(json.dumps(owner | {"program": "another"}))
    with pytest.raises(OutputError, match="belongs to another"):
        run_clients(settings(fresh=True))
    assert len(label_files(run_settings)) == 1


def test_a_folder_of_a_version_without_marks_is_taken_over_by_its_ledger(settings):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    (run_settings.out / NAME).unlink()
    (run_settings.folder / "evt_1.csv").unlink()
    assert run_clients(run_settings).done_now == 1
    assert (run_settings.out / NAME).exists()


def test_shards_of_a_version_without_marks_are_taken_over(settings):
    run_settings = settings(sizes=[3] * 8)
    run_sharded(run_settings, here(print), shards=2)
    (run_settings.out / NAME).unlink()
    assert run_any(run_settings).done == 8


def test_fresh_shards_do_all_again_and_lost_ledgers_of_shards_cost_nothing(settings):
    run_settings = settings(sizes=[3] * 8)
    run_sharded(run_settings, here(print), shards=2)
    report = run_sharded(dataclasses.replace(run_settings, fresh=True), here(print), shards=2)
    assert (report.done, report.done_before) == (8, 0)
    (run_settings.folder / "evt_1.csv").write_text("a result of nobody")
    Results(run_settings.out, Shard(0, 2)).ledger.unlink()
    assert run_any(run_settings).done == 8, "the journal of the shard proves what its ledger knew"
    assert assert_whole(run_settings.events, run_settings.folder) == 8


def test_fresh_keeps_a_result_that_is_no_event_of_this_run(settings):
    run_settings = settings(sizes=[3] * 2)
    run_clients(run_settings)
    (run_settings.folder / "mine.csv").write_text("9\n")
    run_clients(settings(fresh=True))
    assert (run_settings.folder / "mine.csv").read_text() == "9\n"
    (run_settings.folder / "mine.csv").unlink()
    assert assert_whole(run_settings.events, run_settings.folder) == 2


def test_a_dead_endpoint_leaves_the_notes_of_the_quarantine(settings):
    run_settings = settings(sizes=[3] * 2)
    (run_settings.events / "evt_1.csv").write_text("no hits")
    run_clients(run_settings)
    note = run_settings.out / "quarantine" / "evt_1.json"
    before = note.read_bytes()
    with pytest.raises(EndpointError):
        run_clients(settings(retry_failed=True, server=f"127.0.0.1:{free_port()}"))
    assert note.read_bytes() == before
    told = []
    assert run_clients(settings(), tell=told.append).failed_before == 1, "it is still in quarantine"
    assert "1 in quarantine are skipped" in str(told[0])
    (run_settings.events / "evt_1.csv").write_text("1,2,3\n")
    run_clients(settings(retry_failed=True)).check()
    assert not note.exists()
