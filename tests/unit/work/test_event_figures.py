"""What a run keeps of each event beside its labels: tracks, and the times of the stages, whatever happens to it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.page.page import render_page
from exatrkx_hpc.page.read import history
from exatrkx_hpc.tracking.scoring import score as scoring
from exatrkx_hpc.work.events.source import event_key
from exatrkx_hpc.work.ledger.file import create
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.nodes.merge import Merger, RunFacts
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.outcome import Failed, Result
from exatrkx_hpc.work.results.parts import Part
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.event_figures import StageMeans, counts_of, write_times
from exatrkx_hpc.work.workloads.exatrkx import MIN_TRACK_HITS, WORKLOAD, count_tracks

STAGES = ("embedding", "building", "filtering", "gnn", "labeling")
HEADER = "event,embedding,building,filtering,gnn,labeling,total"


@pytest.mark.parametrize(
    ("labels", "tracks"),
    [
        ([], 0),
        ([0], 0),
        ([0, 0], 0),
        ([0, 0, 0], 1),
        ([5, 2, 5, 2, 5, 2, 9], 2),
        ([-1, -1, -1, -1], 0),
        ([2**62, 2**62, 2**62, -(2**62), 7], 1),
    ],
)
def test_a_track_is_a_label_of_three_hits(labels: list[int], tracks: int):
    assert count_tracks(np.array(labels, dtype=np.int64)) == tracks


def test_a_track_is_one_of_the_score():
    assert MIN_TRACK_HITS == scoring.MIN_TRACK_HITS


def test_every_model_of_the_stages_has_its_stage():
    stages = [(request.model, request.stage) for request in WORKLOAD.requests("stages")]
    assert dict(stages) == {
        "embed": "embedding", "frnn": "building", "filter": "filtering", "applyfilter": "filtering", "gnn": "gnn",
        "wcc": "labeling",
    }  # fmt: skip
    assert WORKLOAD.stages("stages") == tuple(STAGES) and WORKLOAD.stages("ensemble") == ()


def test_the_mean_is_over_the_events_whose_stages_are_known():
    means = StageMeans()
    assert means.means_ms() == {}
    for stages in ((0.001, 0.002, 0.003, 0.004, 0.005), (), (0.003, 0.002, 0.001, 0.0, 0.005)):
        means.add(dict(zip(STAGES, stages, strict=False)))
    assert means.means_ms() == pytest.approx(dict(zip(STAGES, (2.0, 2.0, 2.0, 2.0, 5.0), strict=True)))


def result(name: str, stages: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5), **changes) -> Result:
    fields = {
        "items": 3,
        "seconds": 1.75,
        "retries": 0,
        "size": 18,
        "mtime_ns": 7,
        "sha256": "ab" * 32,
        "counts": {"tracks": 2},
    }
    written = {"result_size": 6, "result_sha256": "cd" * 32}
    return Result(name=name, stages=dict(zip(STAGES, stages, strict=False)), **(fields | written | changes))


def ledger_of(path: Path, *names: str) -> Path:
    create(path, {"mode": "stages", "stages": ",".join(STAGES)})
    with Ledger(path) as ledger, ledger.db:
        rows = [(event_key(name), name) for name in names]
        ledger.db.executemany("INSERT INTO events (key, name, size, mtime_ns) VALUES (?, ?, 18, 7)", rows)
    return path


def told(path: Path, *ledgers: Path) -> list[str]:
    opened = [Ledger(one) for one in ledgers]
    write_times(path, opened)
    for one in opened:
        one.close()
    return path.read_text().splitlines()


def test_each_done_event_has_a_row_whatever_became_of_it_before(tmp_path: Path):
    path = ledger_of(tmp_path / "a.sqlite", "evt_2", "evt_9", "evt_10", "evt_11", "evt_12")
    with Ledger(path) as ledger:
        ledger.done(result("evt_10"))
        ledger.done(result("evt_2"))
        ledger.done(result("evt_11", stages=()))
        ledger.done(result("evt_12"))
        ledger.commit()
        ledger.done(result("evt_2", stages=(0.6, 0.2, 0.3, 0.4, 0.5), seconds=2.0))  # its labels were lost
        ledger.fail(Failed(event="evt_12", kind="model", reason="changed, and refused"))
        ledger.commit()
        ledger.done(result("evt_9"))  # a kill comes before the commit
    with Ledger(path) as ledger:
        assert counts_of(ledger) == {"tracks": 3 * 2}  # not those of evt_9 and evt_12
        assert "9 <small>6 tracks</small>" in render_page(history([ledger]))
    assert told(tmp_path / "times.csv", path) == [
        HEADER,
        "evt_2,0.600000,0.200000,0.300000,0.400000,0.500000,2.000000",
        "evt_10,0.100000,0.200000,0.300000,0.400000,0.500000,1.750000",
        "evt_11,,,,,,1.750000",
    ]


def test_parts_and_shards_have_their_times_too(tmp_path: Path):
    one, two = ledger_of(tmp_path / "1.sqlite", "evt_10", "evt_3"), ledger_of(tmp_path / "2.sqlite", "evt_9")
    with Ledger(one) as ledger:
        part = Part(event="evt_3", events=2, size=9, sha256="cd" * 32)
        ledger.done_part(part, [(result(name, result_size=None, result_sha256=""), 1) for name in ("evt_3", "evt_10")])
        ledger.commit()
    with Ledger(two) as ledger:
        ledger.begin_run(server="", version="")
        ledger.done(result("evt_9"))
        ledger.commit()
    assert [line.split(",")[0] for line in told(tmp_path / "t.csv", one, two)] == ["event", "evt_3", "evt_9", "evt_10"]
    merger = Merger()
    with Ledger(two) as ledger:
        merger.add(ledger, before=0)
    report = merger.report(RunFacts(server="", model="", mode="stages", item="hits", nodes={}, stopped=None))
    assert report.counts == {"tracks": 2} and report.stages_ms["gnn"] == pytest.approx(400.0)


def test_the_ledger_of_an_earlier_program_is_gone_on_with(tmp_path: Path):
    path = ledger_of(tmp_path / "a.sqlite", "evt_1", "evt_2")
    with Ledger(path) as ledger:
        ledger.done(result("evt_1"))
        ledger.commit()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE extras")
    db.close()
    with Ledger(path) as ledger:
        ledger.done(result("evt_2"))
        ledger.commit()
    lines = told(tmp_path / "times.csv", path)
    assert lines[1] == "evt_1,,,,,,1.750000" and lines[2].startswith("evt_2,0.1")


def test_times_that_cannot_be_written_leave_those_before(tmp_path: Path):
    path = ledger_of(tmp_path / "a.sqlite", "evt_1")
    (tmp_path / "times.csv").mkdir()
    with Ledger(path) as ledger, pytest.raises(OutputError, match=r"cannot write .*times\.csv: Is a directory"):
        write_times(tmp_path / "times.csv", [ledger])
    assert not list(tmp_path.glob(".times*"))


def test_the_first_events_of_a_run_are_in_its_labels_and_not_in_its_latency(tmp_path: Path):
    results = Results(tmp_path)
    ledger_of(results.ledger, "a", "b", "c", "d")
    with Ledger(results.ledger) as ledger:
        accounts = Accounts(ledger, results, tmp_path, server="", version="", ignore_first=2)
        for name, seconds in (("c", 100.0), ("a", 50.0), ("b", 1.0), ("d", 3.0)):
            accounts.add(result(name, stages=(seconds, 0, 0, 0, 0), seconds=seconds), attempts=1)
        accounts.commit()
        report = accounts.report(model="", mode="stages", seconds=1.0, workers=(), stopped=None)
    assert report.done == 4 and report.counts == {"tracks": 8} and report.items == 12 and report.ignored_first == 2
    assert report.latency_ms.mean == pytest.approx(2000.0) and report.stages_ms["embedding"] == pytest.approx(2000.0)
    assert json.loads(report.to_json())["ignored_first"] == 2
