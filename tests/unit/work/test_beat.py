"""The sign of life of a run over many nodes, and what a node does that hears none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exatrkx_hpc.launch.slurm.scheduler import give_back
from exatrkx_hpc.work.nodes import heartbeat as beat


class Time:
    """A clock that goes on while somebody sleeps; `happens` is what happens meanwhile."""

    def __init__(self, happens=lambda now: None) -> None:
        self.now = 0.0
        self.happens = happens

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens(self.now)


def heard(path: Path, time: Time) -> bool:
    return beat.is_heard(path, silence=90, clock=lambda: time.now, sleep=time.sleep)


def test_a_sign_that_changes_is_life(tmp_path: Path):
    path = tmp_path / beat.NAME
    beat.touch(path)
    os.utime(path, (1, 1))
    time = Time(lambda now: beat.touch(path) if now > 5 else None)
    assert heard(path, time) and time.now < 6


@pytest.mark.parametrize("there", [True, False])
def test_a_sign_that_does_not_change_is_none(tmp_path: Path, there: bool):
    path = tmp_path / beat.NAME
    if there:
        beat.touch(path)
    time = Time()
    assert not heard(path, time) and 90 <= time.now < 91


@pytest.mark.parametrize(
    ("requeue", "cancel", "told"),
    [(0, 0, "it restarts"), (1, 0, "it is cancelled"), (1, 1, "Invalid job id specified")],
)
def test_a_job_that_nobody_waits_for_begins_anew_or_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requeue: int, cancel: int, told: str
):
    says = "scancel: error: Kill job error on job id 7: Invalid job id specified"
    for program, status in (("scontrol", requeue), ("scancel", cancel)):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "$@" >>"$0.argv"\necho "{says}" >&2\nexit {status}\n')
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert give_back("7") == told
    assert (tmp_path / "scontrol.argv").read_text() == "requeue 7\n"
    assert (tmp_path / "scancel.argv").exists() == bool(requeue)
