from __future__ import annotations

import io
import re
import sys
import types

import pytest
from rich.console import Console

from exatrkx_hpc.work.run.progress import Pace, ProgressTable, Tally, progress_bar, time_left


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(**more) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=110, color_system=None, **more)


def shown(pace: Pace) -> str:
    console = terminal()
    console.print(ProgressTable(pace))
    return console.file.getvalue()


def cells(text: str) -> dict[str, str]:
    """The row of figures below its headings."""
    lines = text.splitlines()
    row = next(number for number, line in enumerate(lines) if "time left" in line)
    return dict(zip(re.split(r"\s{2,}", lines[row].strip()), re.split(r"\s{2,}", lines[row + 1].strip()), strict=True))


def test_rates_are_of_this_run_and_the_one_of_now_follows():
    clock = Clock()
    pace = Pace(clock)
    pace.note(Tally(events=1000, done=400, failed=0))  # done by an earlier run
    assert pace.mean is None and pace.now is None and pace.seconds_left is None
    for _ in range(20):
        clock.now += 1.0
        pace.note(Tally(events=1000, done=pace.tally.done + 10, failed=0))
    assert pace.mean == pytest.approx(10) == pace.now
    for _ in range(20):
        clock.now += 1.0
        pace.note(Tally(events=1000, done=pace.tally.done + 2, failed=0))
    assert pace.mean == pytest.approx(6) and pace.now == pytest.approx(2)
    assert pace.seconds_left == pytest.approx((1000 - 640) / 2)


def test_the_rate_falls_while_nothing_happens():
    clock = Clock()
    pace = Pace(clock)
    for done in (0, 50):
        pace.note(Tally(events=100, done=done, failed=0))
        clock.now += 5.0
    busy = pace.now
    clock.now += 500.0
    assert pace.now < busy / 10 and pace.seconds_left > 100


def test_the_rates_stay_once_every_event_is_done():
    clock = Clock()
    pace = Pace(clock)
    for done in (0, 50, 100):
        pace.note(Tally(events=100, done=done, failed=0))
        clock.now += 5.0
    clock.now += 500.0
    assert pace.mean == pytest.approx(10) == pace.now and pace.seconds_left == 0


def test_the_table_shows_every_figure():
    clock = Clock()
    pace = Pace(clock)
    members = {"nid001:8001": 150, "nid002:8001": 49, "": 3, "nid[bold]003": 1}
    pace.note(Tally(events=2000, done=0, failed=0))
    clock.now += 4.0
    pace.note(Tally(events=2000, done=200, failed=3, retries=7, in_flight=32, members=members))
    text = shown(pace)
    assert cells(text) == {
        "done": "200",
        "failed": "3",
        "retries": "7",
        "in flight": "32",
        "events/s now": "50.0",
        "events/s mean": "50.0",
        "time left": "36 s",
    }
    assert "203/2000 10.2 %" in text or "203/2000 10.1 %" in text
    assert re.search(r"nid001:8001 .* 75 % +150", text) and re.search(r"nid\[bold\]003 .* 0 % +1", text)


def test_members_that_nobody_knows_are_left_out_and_many_are_gathered():
    pace = Pace(Clock())
    pace.note(Tally(events=10, done=1, failed=0, members={"": 1}))
    assert "%" not in shown(pace).split("10.0 %")[1]
    pace.note(Tally(events=100, done=90, failed=0, members={f"n{number}": 3 for number in range(30)}))
    text = shown(pace)
    assert len(re.findall(r"n\d+ ", text)) == 7 and re.search(r"23 others .* 77 % +69", text)


def test_before_the_first_event():
    assert shown(Pace(Clock())) == "getting ready\n"
    pace = Pace(Clock())
    pace.note(Tally(events=0, done=0, failed=0))
    assert cells(shown(pace))["time left"] == "–"


def test_progress_is_a_live_table_on_a_terminal_and_nothing_when_quiet(capfd):
    console = terminal()
    with progress_bar(console=console) as show:
        show(Tally(events=10, done=6, failed=1))
    assert "7/10 70.0 %" in console.file.getvalue()
    silent = terminal()
    with progress_bar(quiet=True, console=silent) as show:
        show(Tally(events=10, done=6, failed=1))
    assert silent.file.getvalue() == "" and capfd.readouterr() == ("", "")


def test_the_table_is_gone_at_the_end_and_results_on_stdout_are_not_touched(capsys):
    console = terminal()
    with progress_bar(console=console) as show:
        show(Tally(events=10, done=6, failed=1))
        print("a result")
    assert capsys.readouterr().out == "a result\n" and "a result" not in console.file.getvalue()
    assert "\x1b[2K" in console.file.getvalue().rpartition("time left")[2]  # its lines are erased


def test_progress_is_a_line_now_and_then_in_a_log():
    clock = Clock()
    log = Console(file=io.StringIO(), force_terminal=False, width=200)
    with progress_bar(console=log, clock=clock) as show:
        show(Tally(events=10, done=0, failed=0))
        for done in range(1, 7):
            clock.now += 4.0
            show(Tally(events=10, done=done, failed=1, retries=done // 6))
    assert log.file.getvalue().splitlines() == [
        "3 of 10 events, 1 failed, 0.2 events/s, 24 s left",
        "6 of 10 events, 1 failed, 1 retries, 0.2 events/s, 12 s left",
    ]


def test_progress_is_one_line_in_a_notebook_that_changes(monkeypatch):
    class Notebook(types.ModuleType):
        """What IPython shows, each state of the one output after the other."""

        def __init__(self):
            super().__init__("IPython.display")
            self.shown = []

        def display(self, bundle, *, raw, display_id):
            assert raw and display_id is True
            self.shown.append(bundle["text/plain"])
            return self

        def update(self, bundle, *, raw):
            assert raw
            self.shown.append(bundle["text/plain"])

    notebook, clock = Notebook(), Clock()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    with progress_bar(console=Console(file=io.StringIO(), force_jupyter=True), clock=clock) as show:
        for done in range(21):
            show(Tally(events=20, done=done, failed=0))
            clock.now += 0.1
    assert notebook.shown[0] == "getting ready" and notebook.shown[1].startswith("0 of 20 events, 0 failed")
    assert notebook.shown[-1].startswith("20 of 20 events, 0 failed, 10.0 events/s")
    assert len(notebook.shown) < 12  # a few times a second


def test_a_log_that_is_not_told_when_the_run_began_has_no_rate_at_first():
    log = Console(file=io.StringIO(), force_terminal=False)
    with progress_bar(console=log, every=0.0, clock=Clock()) as show:
        show(Tally(events=10, done=6, failed=1))
    assert log.file.getvalue() == "6 of 10 events, 1 failed\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (0.2, "0 s"), (59.6, "1 min"), (245, "4 min 5 s"), (11_400, "3 h 10 min")],
)
def test_time_left(seconds, words):
    assert time_left(seconds) == words
