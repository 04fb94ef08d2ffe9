"""A lost ledger costs no result: the journal proves them by their digests, and nothing is removed."""

from __future__ import annotations

import json
import resource

import pytest
from runs import assert_whole, label_files, ledger_rows

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.farm import run_clients as run_any
from exatrkx_hpc.work.news import LedgerRebuilt
from exatrkx_hpc.work.nodes.run import here, run_sharded
from exatrkx_hpc.work.results.journal import NAME, Journal, facts_in, read_journal
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.shards import Shard
from exatrkx_hpc.work.run.run import run_clients


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_results_are_taken_over_by_their_digests(settings, form):
    run_settings = settings(sizes=[3] * 6, result_format=form, part_events=2)
    run_clients(run_settings)
    before = label_files(run_settings)
    (run_settings.out / "ledger.sqlite").unlink()
    told = []
    report = run_clients(run_settings, tell=told.append)
    assert (report.done, report.done_before, report.version) == (6, 6, "1") and label_files(run_settings) == before
    assert isinstance(told[0], LedgerRebuilt) and (told[0].taken, told[0].unproven) == (6, 0)
    assert all(member is not None for (member,) in ledger_rows(run_settings, "sha256"))


def test_what_the_journal_does_not_prove_is_put_aside_and_done_again(settings):
    run_settings = settings(sizes=[3] * 5)
    run_clients(run_settings)
    (run_settings.out / "ledger.sqlite").unlink()
    (run_settings.folder / "evt_1.csv").write_text("9\n9\n9\n")  # another result
    (run_settings.events / "evt_2.csv").write_text("0.5,0.5,0.5\n" * 4)  # another event
    (run_settings.folder / "mine.csv").write_text("of no event\n")
    journal = (run_settings.out / NAME).read_text().splitlines()
    (run_settings.out / NAME).write_text("\n".join(line for line in journal if "evt_3" not in line) + '\n{"resu')
    told = []
    report = run_clients(run_settings, tell=told.append)
    assert (report.done, report.done_before) == (5, 2) and (told[0].taken, told[0].unproven) == (2, 3)
    assert "3 that it does not prove are in" in str(told[0])
    aside = sorted(path.name for path in (run_settings.out / "unproven").iterdir())
    assert aside == ["evt_1.csv", "evt_2.csv", "evt_3.csv"]
    assert (run_settings.out / "unproven" / "evt_1.csv").read_text() == "9\n9\n9\n"
    (run_settings.folder / "evt_1.csv").write_text("8\n8\n8\n")
    (run_settings.out / "ledger.sqlite").unlink()
    run_clients(run_settings)
    assert (run_settings.out / "unproven" / "evt_1.csv").read_text() == "9\n9\n9\n", "of the rebuild before"
    assert (run_settings.out / "unproven" / "evt_1.csv.2").read_text() == "8\n8\n8\n"
    assert (run_settings.folder / "mine.csv").read_text() == "of no event\n"
    (run_settings.folder / "mine.csv").unlink()
    assert assert_whole(run_settings.events, run_settings.folder) == 5


def test_results_without_ledger_and_journal_are_refused_and_stay(settings):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    before = label_files(run_settings)
    for name in ("ledger.sqlite", NAME):
        (run_settings.out / name).unlink()
    refused = r"labels has 3 results of an earlier run, but .*ledger\.sqlite is missing; restore it, move .* --fresh$"
    with pytest.raises(OutputError, match=refused):
        run_clients(run_settings)
    assert label_files(run_settings) == before
    assert run_clients(settings(fresh=True)).done_now == 3


@pytest.mark.parametrize("changes", [{"mode": "fused"}, {"model": "other"}])
def test_a_journal_of_other_settings_proves_nothing(settings, changes):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    (run_settings.out / "ledger.sqlite").unlink()
    with pytest.raises(OutputError, match=r"3 results of an earlier run"):
        run_clients(settings(**changes))
    assert not (run_settings.out / "ledger.sqlite").exists() and len(label_files(run_settings)) == 3


def killed(_):
    raise KeyboardInterrupt


def test_a_ledger_of_a_version_without_journal_gets_one(settings, monkeypatch):
    run_settings = settings(sizes=[3] * 3)
    run_clients(run_settings)
    whole = (run_settings.out / NAME).read_text()
    (run_settings.out / NAME).unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "close", killed)
        run_clients(run_settings)
    assert not (run_settings.out / NAME).exists(), "a part of the journal would disprove the other results"
    run_clients(run_settings)
    assert (run_settings.out / NAME).read_text().count("evt_") == whole.count("evt_")
    (run_settings.out / "ledger.sqlite").unlink()
    assert run_clients(run_settings).done_before == 3


def test_parts_of_a_version_without_journal_are_put_aside(settings):
    run_settings = settings(sizes=[3] * 6, result_format="parquet", part_events=3)
    run_clients(run_settings)
    before = label_files(run_settings)
    (run_settings.out / NAME).unlink()
    run_clients(run_settings)
    (run_settings.out / "ledger.sqlite").unlink()
    told = []
    report = run_clients(run_settings, tell=told.append)
    assert (report.done, report.done_before) == (6, 0) and (told[0].taken, told[0].unproven) == (0, 2)
    aside = {path.name: path.read_bytes() for path in (run_settings.out / "unproven").iterdir()}
    assert aside == before


def test_the_lost_ledger_of_a_shard_is_rebuilt(settings):
    run_settings = settings(sizes=[3] * 10)
    run_sharded(run_settings, here(print), shards=2)
    lost = Results(run_settings.out, Shard(1, 2))
    lost.ledger.unlink()
    spoiled = next(lost.result_files())
    spoiled.write_text("9\n")
    report = run_any(run_settings)
    assert (report.done, report.events) == (10, 10)
    assert assert_whole(run_settings.events, run_settings.folder) == 10
    assert [path.name for path in (run_settings.out / "unproven").iterdir()] == [spoiled.name]


def test_a_journal_goes_on_after_a_line_that_an_error_cut(tmp_path):
    journal = Journal(tmp_path / NAME)
    journal.note_facts({"mode": "stages"})
    journal.flush()
    journal.note_facts({"version": "2" * 100})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(OutputError, match="File too large"):
                journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.note_facts({"item": "hits"})
    journal.close()
    assert facts_in(tmp_path / NAME) == {"mode": "stages", "version": "2" * 100, "item": "hits"}


def test_a_journal_that_cannot_be_written_costs_no_line_of_the_ledger(settings, monkeypatch):
    def full(_):
        raise OutputError("cannot write the journal")

    def spoil(tally):
        if tally.done == 3:
            monkeypatch.setattr(Journal, "flush", full)

    run_settings = settings(sizes=[3] * 3)
    with pytest.raises(OutputError, match="cannot write the journal"):
        run_clients(run_settings, spoil)
    assert {state for _, state in ledger_rows(run_settings)} == {"done"}


def test_a_journal_goes_on_after_a_line_that_a_kill_cut(tmp_path):
    path = tmp_path / NAME
    path.write_text('{"facts":{"mode":"stages"}}\n{"resul')
    journal = Journal(path)
    journal.note_facts({"version": "2"})
    journal.flush()
    assert len(list(read_journal(path))) == 2 and facts_in(path) == {"mode": "stages", "version": "2"}
    assert json.loads(path.read_text().splitlines()[-1]) == {"facts": {"version": "2"}}
    with pytest.raises(OutputError, match="cannot write"):
        broken = Journal(tmp_path / "nowhere" / NAME)
        broken.note_facts({})
        broken.flush()
