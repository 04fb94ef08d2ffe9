"""A stop says at intervals what it waits for."""

from __future__ import annotations

import time
from pathlib import Path

from server_records import record
from waiting import until

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import News
from exatrkx_hpc.fleet.events import JobStopping
from exatrkx_hpc.fleet.stopping import stop_news
from exatrkx_hpc.launch.run_dir import RunDir


def write(run_dir: RunDir, name: str, state: str) -> None:
    run_dir.records.mkdir(parents=True, exist_ok=True)
    (run_dir.records / f"{name}.json").write_text(record(name, state=state).model_dump_json())


def test_the_servers_that_still_drain_and_the_lost_node(tmp_path: Path):
    run_dir = RunDir(tmp_path / "7")
    for name, state in (("nid001-0", "draining"), ("nid002-0", "draining"), ("nid003-0", "gone")):
        write(run_dir, name, state)
    info = JobInfo(id="7", state=JobState.RUNNING, nodes=("nid002", "nid003"))
    told: list[News] = []
    with stop_news(run_dir, lambda: info, told.append, interval=0.01):
        until(lambda: len(told) > 1, what="two lines")
    news = told[0]
    assert isinstance(news, JobStopping)
    assert (news.job, news.servers, news.lost) == ("7", ("nid002-0",), ("nid001",))
    assert str(news) == "job 7: RUNNING, waiting for 0 s for 1 server, nid002-0; lost nid001"
    seen = len(told)
    time.sleep(0.1)
    assert len(told) == seen, "nothing is told after the stop"


def test_when_all_servers_have_ended_slurm_is_waited_for(tmp_path: Path):
    run_dir = RunDir(tmp_path / "7")
    write(run_dir, "nid001-0", "gone")
    told: list[News] = []
    info = JobInfo(id="7", state=JobState.COMPLETING, nodes=("nid001",))
    with stop_news(run_dir, lambda: info, told.append, interval=0.01):
        until(lambda: bool(told), what="a line")
    assert str(told[0]) == "job 7: COMPLETING, waiting for 0 s for Slurm to end the job"


def test_a_silent_slurm_does_not_end_the_news(tmp_path: Path):
    told: list[News] = []
    asked: list[int] = []

    def info() -> JobInfo:
        asked.append(1)
        if len(asked) < 3:
            raise LaunchError("down")
        return JobInfo(id="7", state=JobState.RUNNING)

    with stop_news(RunDir(tmp_path / "7"), info, told.append, interval=0.01):
        until(lambda: bool(told), what="a line")
