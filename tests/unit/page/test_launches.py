"""The runs of shards, told as one for each start."""

from __future__ import annotations

from exatrkx_hpc.page.history import Run
from exatrkx_hpc.page.launches import Launch, joined, noted_launches


def run(began: float, ended: float, *, stopped: str = "", killed: bool = False) -> Run:
    return Run(began=began, ended=ended, server="a:1", stopped=stopped, killed=killed)


def test_the_runs_of_a_launch_are_one_also_with_a_pause_in_it():
    launches = noted_launches({"10.000": 500.0, "600.000": 700.0}, {"10.000": "stopped by SIGTERM", "600.000": ""})
    assert launches[0] == Launch(began=10, ended=500, stopped="stopped by SIGTERM")
    shards = [run(11, 60, killed=True), run(12, 90), run(400, 480, stopped="stopped by SIGTERM"), run(601, 650)]
    assert joined(shards, launches) == (run(11, 480, stopped="stopped by SIGTERM"), run(601, 650))


def test_a_launch_that_was_killed_is_told_from_what_overlaps():
    shards = [run(0, 10, killed=True), run(1, 9), run(10.5, 12, killed=True), run(60, 70)]
    assert joined(shards, []) == (run(0, 12, killed=True), run(60, 70))


def test_two_launches_in_a_row_are_two():
    launches = noted_launches({"0.000": 10.0, "11.000": 20.0}, {})
    assert [(one.began, one.ended) for one in joined([run(1, 9), run(12, 19)], launches)] == [(1, 9), (12, 19)]


def test_a_note_that_is_no_time_is_passed_over():
    assert noted_launches({"0.000": "never"}, {}) == ()
