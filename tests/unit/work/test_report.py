from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from exatrkx_hpc.base.errors import IncompleteRun, InputError
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency
from exatrkx_hpc.work.run.report import Report, read_report, render_table


def make(**changes) -> Report:
    fields = {
        "server": "127.0.0.1:9191",
        "model": "exatrkx",
        "events": 10,
        "done": 10,
        "failed": (),
        "items": 4321,
        "seconds": 4.0,
        "latency_ms": Latency(mean=200.0, p50=200.0, p95=290.0, p99=298.0),
        "retries": 2,
        "workers": (7, 3),
    }
    return Report(**(fields | changes))


def test_tracks_and_stages_have_their_rows():
    text = shown(make(counts={"tracks": 184}, ignored_first=2, stages_ms={"embedding": 1.25, "gnn": 12.0}))
    for figure in ("184", "embedding 1.2, gnn 12.0 ms", "the first 2 events"):
        assert figure in text


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render_table(report))
    return console.file.getvalue()


def test_a_report_survives_its_json(tmp_path):
    failed = Failed(event="evt_3", kind="input", reason="evt_3.csv:2: nan")
    report = make(done=8, failed=(failed,), stopped="stopped by SIGTERM", members={"n1:8001": 8})
    (tmp_path / "report.json").write_text(report.to_json())
    assert read_report(tmp_path / "report.json") == report
    fields = json.loads(report.to_json())
    assert fields["events_per_second"] == 2.0 and fields["not_tried"] == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"events": 3}'])
def test_a_file_that_is_no_report(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match="not a run-clients report"):
        read_report(tmp_path / "report.json")


def test_a_run_of_no_time_has_no_rate():
    assert make(done=0, seconds=0.0).events_per_second == 0.0


def test_check_speaks_up_when_an_event_has_no_labels():
    make().check()
    with pytest.raises(IncompleteRun, match=r"^9 of 10 events have results; first failure: e: boom$"):
        make(done=9, failed=(Failed(event="e", kind="model", reason="boom"),)).check()
    with pytest.raises(IncompleteRun, match=r"^3 of 10 events have results; stopped by SIGINT$"):
        make(done=3, stopped="stopped by SIGINT").check()


def test_the_table_shows_the_figures_and_the_first_failures():
    text = shown(make())
    assert "stages mean" not in text and "latency without" not in text
    for figure in (
        "127.0.0.1:9191",
        "10 of 10",
        "4.00 s",
        "2.5",
        "4321",
        "200.0 / 290.0 / 298.0 ms",
        "7 3",
    ):
        assert figure in text
    assert "stopped" not in text
    failed = tuple(Failed(event=f"evt_{n}", kind="input", reason="a [bold]bracket[/bold]") for n in range(12))
    text = shown(make(events=30, done=8, failed=failed, stopped="stopped by SIGTERM"))
    assert "stopped by SIGTERM (10 not tried)" in text and "input: a [bold]bracket[/bold]" in text
    assert "evt_9" in text and "evt_10" not in text and "and 2 more failed" in text


def test_what_earlier_runs_did_is_told_apart():
    report = make(events=20, done=18, done_before=8, failed_before=1, more_failed=2, members={"a:1": 6, "b:1": 4})
    assert (report.done_now, report.failures, report.not_tried, report.events_per_second) == (10, 2, 0, 2.5)
    text = shown(report)
    assert "18 of 20 (8 before, 10 now)" in text and "2 (1 before, 1 now)" in text and "a:1 6, b:1 4" in text
    assert json.loads(report.to_json())["done_now"] == 10
