"""The models of a run: results of other models, also of one inside an ensemble, are not mixed in unnoticed."""

from __future__ import annotations

import json
import time

import pytest
from fakes.running import fake_triton
from runs import events_of, label_files, ledger_rows

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.news import ModelsChanged
from exatrkx_hpc.work.nodes.run import here, run_sharded
from exatrkx_hpc.work.results.models import changes
from exatrkx_hpc.work.run import faults, model_watch
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import run_clients


def facts(settings) -> dict[str, str]:
    with Ledger(settings.out / "ledger.sqlite") as ledger:
        return dict(ledger.facts)


def labelled(settings) -> set[str]:
    """Return the names of the events whose labels are on disk."""
    files = sorted(settings.folder.iterdir())
    if settings.result_format == "parquet":
        return {name for file in files for name in events_of(file)}
    return {file.stem for file in files}


def test_a_model_inside_the_ensemble_that_changed_ends_a_resumed_run(settings, tmp_path):
    gnn = tmp_path / "gnn"
    gnn.write_text("0.5")
    with fake_triton("--gnn", str(gnn)) as fake:
        run_settings = settings(sizes=[3] * 2, server=fake.server)
        run_clients(run_settings)
        models = json.loads(facts(run_settings)["models"])
        assert list(models) == ["exatrkx", "gnn"] and models["gnn"].startswith("version 1, configuration ")
        (run_settings.events / "evt_9.csv").write_text("0.5,0.5,0.5\n")
        gnn.write_text("0.7")
        refused = r"other models than .* serves: gnn was version 1, configuration \w+ and is version 1, configuration"
        with pytest.raises(OutputError, match=refused) as complaint:
            run_clients(run_settings)
        assert str(complaint.value).endswith(
            "start over with --fresh, or go on and record both with --accept-model-change"
        )
        assert json.loads(facts(run_settings)["models"]) == models
        told = []
        report = run_clients(settings(server=fake.server, accept_model_change=True), tell=told.append)
        assert report.done == 3 and [type(one) for one in told][1:] == [ModelsChanged] and "gnn was" in str(told[1])
        assert json.loads(facts(run_settings)["models"]) != models
        assert run_clients(run_settings).done == 3


def test_shards_compare_the_models_too(settings, tmp_path):
    gnn = tmp_path / "gnn"
    gnn.write_text("0.5")
    with fake_triton("--gnn", str(gnn)) as fake:
        run_settings = settings(sizes=[3] * 8, server=fake.server)
        run_sharded(run_settings, here(print), shards=2)
        (run_settings.events / "evt_9.csv").write_text("0.5,0.5,0.5\n")
        next(run_settings.folder.iterdir()).unlink()
        gnn.write_text("0.7")
        with pytest.raises(OutputError, match="gnn was"):
            run_sharded(run_settings, here(print))


def test_an_answer_of_another_version_ends_the_run_and_leaves_no_result(settings):
    with fake_triton("--answers", "2", "--member", "n1:8001") as fake:
        run_settings = settings(sizes=[3] * 4, server=fake.server, in_flight=1)
        refused = r"n1:8001 behind .* answered evt_\d with version 2 of the model, but this run began with version 1"
        with pytest.raises(OutputError, match=refused):
            run_clients(run_settings)
        assert "done" not in {state for _, state in ledger_rows(run_settings)}
        report = run_clients(settings(server=fake.server, accept_model_change=True))
    assert report.done == 4 and {version for (version,) in ledger_rows(run_settings, "version")} == {"2"}


def test_results_of_two_versions_are_counted(settings):
    run_clients(settings(sizes=[3] * 2))
    (settings().events / "evt_9.csv").write_text("0.5,0.5,0.5\n")
    with fake_triton("--version", "3") as fake:
        report = run_clients(settings(server=fake.server, accept_model_change=True))
    assert report.versions == {"1": 2, "3": 1} == read_report(settings().report).versions
    assert (report.version, report.done) == ("3", 3)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_model_that_changes_during_the_run_ends_it_and_takes_back_what_is_doubtful(
    settings, tmp_path, monkeypatch, form
):
    monkeypatch.setattr(model_watch, "EVERY", 0.5)
    gnn = tmp_path / "gnn"
    gnn.write_text("0.5")
    changed = []

    def change(tally):
        if tally.done >= 100 and not changed:
            changed.append(time.time())
            gnn.write_text("0.7")

    with fake_triton("--gnn", str(gnn), "--delay", "0.05") as fake:
        parts = {"result_format": form, "part_events": 50}
        run_settings = settings(sizes=[3] * 400, server=fake.server, in_flight=2, **parts)
        with pytest.raises(
            OutputError, match=r"changed during the run: gnn was .*; \d+ results since the last look are"
        ):
            run_clients(run_settings, change)
        rows = ledger_rows(run_settings, "name, ended, state")
        done = {name: ended for name, ended, state in rows if state == "done"}
        assert len(done) < 400 and max(done.values()) < changed[0], "none that the changed model may have answered"
        assert labelled(run_settings) == set(done)
        assert read_report(run_settings.report).done == len(done)
        with pytest.raises(OutputError, match="gnn was"):
            run_clients(run_settings)
        told = []
        accepting = settings(server=fake.server, in_flight=16, accept_model_change=True, **parts)
        assert run_clients(accepting, tell=told.append).done == 400


def test_a_change_in_the_last_moment_is_noticed_at_the_end(settings, tmp_path):
    gnn = tmp_path / "gnn"
    gnn.write_text("0.5")

    def change(tally):
        if tally.done == 3:
            gnn.write_text("0.7")

    with fake_triton("--gnn", str(gnn)) as fake:
        run_settings = settings(sizes=[3] * 3, server=fake.server)
        with pytest.raises(OutputError, match="3 results since the last look are taken back"):
            run_clients(run_settings, change)
        assert label_files(run_settings) == {}
        assert run_clients(run_settings).done == 3


def test_a_run_that_stops_looks_too_and_blames_no_event_for_a_model_that_changed(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "BROKEN_MODEL", 2)
    gnn = tmp_path / "gnn"
    gnn.write_text("0.5")

    def change(tally):
        if tally.failed:
            gnn.write_text("0.7")

    with fake_triton("--gnn", str(gnn), "--refused", "3") as fake:
        run_settings = settings(sizes=[2, 3, 3, 3], server=fake.server, in_flight=1)
        (run_settings.events / "evt_0.csv").write_text("no hits")
        with pytest.raises(OutputError, match="changed during the run: gnn was"):
            run_clients(run_settings, change)
    assert dict(ledger_rows(run_settings)).pop("evt_0") == "quarantined", "its content is its own fault"
    assert {state for _, state in ledger_rows(run_settings)[1:]} == {"waiting"}
    assert read_report(run_settings.report).failures == 1


@pytest.mark.parametrize("fault", [OutputError("disk full"), ValueError("a bug")])
def test_a_watch_that_fails_ends_the_run(settings, monkeypatch, fault):
    monkeypatch.setattr(model_watch, "EVERY", 0.1)

    def broken(*_):
        raise fault

    monkeypatch.setattr(model_watch, "changes", broken)
    with fake_triton("--delay", "0.05") as fake:
        run_settings = settings(sizes=[3] * 400, server=fake.server, in_flight=2)
        with pytest.raises(type(fault), match=str(fault)):
            run_clients(run_settings)
    assert len(label_files(run_settings)) < 400


def test_an_endpoint_that_does_not_tell_its_models_is_no_obstacle(settings):
    with fake_triton("--no-config") as fake:
        run_settings = settings(sizes=[3] * 2, server=fake.server)
        assert run_clients(run_settings).done == 2 and "models" not in facts(run_settings)


def test_how_two_states_differ():
    assert changes({}, {"a": "1"}) == changes({"a": "1"}, {}) == changes({"a": "1"}, {"a": "1"}) == ""
    said = changes({"a": "1", "b": "2"}, {"a": "2", "c": "3"})
    assert said == "a was 1 and is 2; b was 2 and is absent; c was absent and is 3"
