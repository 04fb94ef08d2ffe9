"""`score` compares the results of a run with the truth, and says what it could not compare."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from runs import labels_text, part_bytes, part_file, read_labels

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import InputError, ModelError
from exatrkx_hpc.scores import Selection, score_results
from exatrkx_hpc.tracking.scoring.score import score_event, total
from exatrkx_hpc.tracking.simulation.synthetic import read_event, write_events
from exatrkx_hpc.work.events.source import find_events


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with events and with results that are right but for every tenth hit."""
    write_events(tmp_path / "events", events=4, tracks=30, seed=3)
    (tmp_path / "results" / "labels").mkdir(parents=True)
    for event in find_events(tmp_path / "events"):
        labels = read_event(event.path).particle
        labels[::10] = 999
        (tmp_path / "results" / "labels" / event.path.name).write_text(labels_text(labels))
    return tmp_path


def test_the_score_is_that_of_all_events(run: Path) -> None:
    found = score_results(run / "results", run / "events")
    each = []
    for event in find_events(run / "events"):
        labels = np.loadtxt(run / "results" / "labels" / event.path.name, dtype=np.int64)
        each.append(score_event(labels, read_event(event.path)))
    assert found.score == total(each) and found.events == 4
    assert 0.9 < found.score.efficiency <= 1.0 and found.score.fake_rate > 0
    assert (found.without_truth, found.without_results, found.stages) == ((), (), ())
    value, low, high = found.rates()["fake_rate"]
    assert low < value < high and value == found.score.fake_rate
    same = score_results(run / "results" / "labels", run / "events", selection=Selection(min_pt=0.0, min_hits=1))
    assert same.score.particles > found.score.particles


@pytest.mark.parametrize("far", [2**53, 9 * 10**17 + 719925591539713, 2**63 - 5, 2**64 - 5000])
def test_ids_of_64_bits_are_exact_in_labels_and_truth(run: Path, far: int) -> None:
    near = score_results(run / "results", run / "events")
    for event in find_events(run / "events"):
        for file, header in ((run / "events" / "truth", 1), (run / "results" / "labels", 0)):
            lines = (file / event.path.name).read_text().splitlines()
            rows = [line.split(",") for line in lines[header:]]
            moved = [",".join([str(int(name) + far if int(name) else 0), *rest]) for name, *rest in rows]
            (file / event.path.name).write_text("\n".join([*lines[:header], *moved, ""]))
    found = score_results(run / "results", run / "events")
    assert found.score == near.score and found.score.efficiency > 0.9


def test_the_signs_that_a_run_passes_over_are_passed_over_here(run: Path) -> None:
    near = score_results(run / "results", run / "events")
    for file in run.rglob("*.csv"):
        file.write_text(file.read_text().replace("\n", "\r\n") + "\r\n", encoding="utf-8-sig", newline="")
    assert score_results(run / "results", run / "events").to_dict() == near.to_dict()


def test_labels_in_parts_score_as_label_files_do(run: Path) -> None:
    pytest.importorskip("pyarrow")
    files = score_results(run / "results", run / "events")
    labels = {event.name: read_labels(event.path) for event in find_events(run / "results" / "labels")}
    first, *others = labels.items()
    (run / "parts").mkdir()
    (run / "parts" / part_file("b")).write_bytes(part_bytes([first]))
    (run / "parts" / part_file("a")).write_bytes(part_bytes(others))
    parts = score_results(run / "parts", run / "events")
    assert parts.to_dict() == files.to_dict() and parts.events == 4
    (run / "parts" / part_file("c")).write_bytes(part_bytes([first]))
    with pytest.raises(InputError, match=r"evt_000000 has labels in .* and in .*; remove the wrong ones"):
        score_results(run / "parts", run / "events")


def test_events_of_another_format_have_no_truth(run: Path) -> None:
    (run / "npy" / "truth").mkdir(parents=True)
    np.save(run / "npy" / "a.npy", np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"the events of .*npy are \*\.npy; score needs events and truth as CSV"):
        score_results(run / "results", run / "npy")


def test_what_has_no_partner_is_named_and_not_counted(run: Path) -> None:
    (run / "results" / "labels" / "evt_000002.csv").rename(run / "results" / "labels" / "other.csv")
    (run / "events" / "truth" / "evt_000001.csv").unlink()
    found = score_results(run / "results", run / "events")
    assert (found.events, found.without_truth, found.without_results) == (2, ("evt_000001", "other"), ("evt_000002",))


def test_folders_that_cannot_be_used(run: Path) -> None:
    (run / "empty").mkdir()
    for results, truth, says in [
        (
            "nowhere",
            "events",
            "folder .*nowhere does not exist; choose the folder that 'exatrkx-hpc run-clients' wrote",
        ),
        ("results", "nowhere", "folder .*nowhere does not exist; choose another --truth"),
        ("empty", "events", "empty has no labels"),
        ("results", "results", "has no folder truth; set --truth to the folder that 'exatrkx-hpc events generate'"),
        ("results", "events/truth", "has no folder truth; set --truth to .*/events$"),
    ]:
        with pytest.raises(InputError, match=says):
            score_results(run / results, run / truth)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("results/labels/evt_000000.csv", "1\n2\n", "evt_000000.csv does not belong to .*: 2 labels for"),
        ("results/labels/evt_000000.csv", "one\n", "evt_000000.csv:1: 'one' is not an integer"),
        ("results/labels/evt_000000.csv", f"1\n{2**64}\n", "evt_000000.csv:2: .* does not fit into 64 bits"),
        ("events/evt_000000.csv", "1;2;3\n", "evt_000000.csv:1: 1 column, not 3 .the values are separated by semi"),
        ("events/truth/evt_000000.csv", "\0", "not with the header"),
        ("events/truth/evt_000000.csv", "1,2,3\n", "not with the header"),
        ("events/truth/evt_000000.csv", "particle,pt,eta\n1,2,3\n", "hits but 1 rows of truth"),
        ("events/truth/evt_000000.csv", "particle,pt,eta\n1,x,3\n", "evt_000000.csv and its truth cannot be used"),
    ],
)
def test_files_that_cannot_be_used(run: Path, file: str, text: str, says: str) -> None:
    (run / file).write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        score_results(run / "results", run / "events")
    assert "\n" not in str(caught.value)


def test_no_event_in_common(run: Path) -> None:
    for path in (run / "results" / "labels").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(InputError, match=r"no event of .* has labels"):
        score_results(run / "results", run / "events")


@pytest.mark.slow
def test_the_stages_of_a_repository(run: Path) -> None:
    pytest.importorskip("torch")
    found = score_results(run / "results", run / "events", repository=asset("model_repos/exatrkx"))
    candidates, filtered, accepted = found.stages
    assert [stage.stage for stage in found.stages] == ["candidates", "filter", "gnn"]
    assert candidates.edges > filtered.edges > accepted.edges > 0
    assert candidates.efficiency >= filtered.efficiency >= accepted.efficiency > 0.8
    assert candidates.purity < filtered.purity < accepted.purity <= 1.0
    assert candidates.true == accepted.true
    with pytest.raises(ModelError):
        score_results(run / "results", run / "events", repository=run / "nowhere")


def test_the_command(run: Path) -> None:
    (run / "results" / "labels" / "evt_000003.csv").unlink()
    table = exatrkx_hpc("score", "results", "--truth", "events", "--plots", "figures", "--format", "svg", cwd=run)
    assert table.returncode == 0, table.stderr
    for words in ("3 events", "efficiency", "purity", "fake rate", "duplicate rate", "particles above 1 GeV"):
        assert words in table.stdout
    assert "1 event(s) have no result and are not scored: evt_000003" in table.stderr
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["score_eta.svg", "score_pt.svg"]
    facts = json.loads(exatrkx_hpc("score", "results", "--truth", "events", "--json", cwd=run).stdout)
    assert facts["events"] == 3 and facts["without_results"] == ["evt_000003"]
    assert set(facts["efficiency"]) == {"value", "low", "high"} and len(facts["profiles"]) == 8
    assert None in next(one for one in facts["profiles"] if one["variable"] == "eta")["value"], "an empty bin is null"
    assert "folder nowhere does not exist" in complaint(
        exatrkx_hpc("score", "nowhere", "--truth", "events", cwd=run), 6
    )


def test_the_memory_does_not_keep_the_profiles_of_each_event(tmp_path: Path) -> None:
    write_events(tmp_path / "events", events=60, tracks=3, seed=3)
    (tmp_path / "results" / "labels").mkdir(parents=True)
    for event in find_events(tmp_path / "events"):
        (tmp_path / "results" / "labels" / event.path.name).write_text(labels_text(read_event(event.path).particle))
    used = {}
    tracemalloc.start()
    try:
        score_results(
            tmp_path / "results",
            tmp_path / "events",
            on_progress=lambda _, done, total: used.update({done: tracemalloc.get_traced_memory()[0]}),
        )
    finally:
        tracemalloc.stop()
    assert (used[60] - used[20]) / 40 < 2000, "the profiles of an event take 5 kB"
