"""A run of clients and the time limit of the job whose servers it asks."""

from __future__ import annotations

import threading

import pytest
from waiting import until

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.errors import IncompleteRun, NotStarted
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import News
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.job_end import JobEnd, told_of_job_end
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.work.run.progress import Tally
from exatrkx_hpc.work.run.run import Settings


def running(time_left: float | None) -> JobInfo:
    return JobInfo(id="42", state=JobState.RUNNING, time_left=time_left)


def tally(done: int) -> Tally:
    return Tally(events=1000, done=done, failed=0)


class Run:
    """A run whose clock and whose job are what the test says."""

    def __init__(self, info: JobInfo, notice: float = 0.0) -> None:
        self.now, self.info, self.told = 0.0, info, list[News]()
        self.end = JobEnd(self.ask, self.told.append, notice=notice, clock=lambda: self.now)

    def ask(self) -> JobInfo:
        if self.info.state is JobState.UNKNOWN:
            raise NotStarted("cannot start squeue")
        return self.info

    def minute(self, done: int) -> None:
        self.now += 60.0
        self.end.note(tally(done))
        self.end.look()


def test_one_warning_if_the_job_ends_first():
    run = Run(running(600.0), notice=120.0)
    run.end.note(tally(100))
    run.minute(200)  # 800 events are left, 480 s at this rate: exactly as long as the servers serve
    assert run.told == []
    run.minute(210)
    run.minute(220)
    (news,) = run.told
    assert str(news) == (
        "790 events are left, about 1 h 19 min at the current rate, but the servers of job 42 end in 8 min; when they "
        "have, deploy another job and run the same command again to go on"
    )


@pytest.mark.parametrize("info", [running(None), JobInfo(id="42", state=JobState.UNKNOWN), running(6000.0)])
def test_a_limit_that_is_unknown_or_far_warns_nobody(info: JobInfo):
    run = Run(info)
    run.end.note(tally(0))
    for minute in range(1, 5):
        run.minute(20 * minute)
    run.minute(80)  # no event in this minute, so that the rate is unknown
    assert run.told == []


def test_a_run_that_stops_says_that_the_job_has_ended():
    run = Run(JobInfo(id="42", state=JobState.TIMEOUT, reason="it reached its time limit; resubmit it"))
    with pytest.raises(IncompleteRun), told_of_job_end(run.end, None, run.told.append, every=0.01) as show:
        show(tally(10))
        until(lambda: run.end.info is not None, what="a look")
        raise IncompleteRun("no server answers")
    assert [str(news) for news in run.told] == [
        "job 42, whose servers this run asked, has ended: TIMEOUT, it reached its time limit; resubmit it"
    ]
    assert "job-end" not in {thread.name for thread in threading.enumerate()}


def test_the_job_is_that_of_the_endpoints_identity(tmp_path, monkeypatch):
    farm = resolve(flags={"site": "local", "run_root": str(tmp_path)}, ambient=False).farm
    shown: list[Tally] = []
    settings = Settings(server="127.0.0.1:1", events=tmp_path, out=tmp_path / "out", identity="exatrkx-0/42/a")
    with story._to_job_end(settings, shown.append, farm=farm, tell=print) as show:
        assert show == shown.append, "the run root has no such job"
    FarmDir(tmp_path).job("42").path.mkdir()
    with story._to_job_end(settings, shown.append, farm=farm, tell=print) as show:
        assert show is not None and show != shown.append
        show(tally(1))
    assert shown == [tally(1)]
