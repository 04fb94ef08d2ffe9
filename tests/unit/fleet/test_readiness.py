"""How long a command waits for servers: the queue does not count, and some of the servers may suffice."""

from __future__ import annotations

import pytest
from server_records import record

from exatrkx_hpc.base.errors import ConfigError, EndpointError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.values import least_ready
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.readiness import ReadyWait


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def info(state: JobState) -> JobInfo:
    return JobInfo(id="42", state=state, reason="Priority")


def members(ready: int = 0, gone: int = 0) -> list[Member]:
    states = [("ready", "answers")] * ready + [("gone", "ended with status 1 at start number 6; gave up")] * gone
    return [
        Member(record=record(server=f"n{place}"), state=state, note=note) for place, (state, note) in enumerate(states)
    ]


def test_days_in_the_queue_do_not_count():
    clock = Clock()
    wait = ReadyWait(wanted=2, servers=2, timeout=600, clock=clock)
    for day in range(5):
        clock.time = day * 86400.0
        assert not wait.over(info(JobState.PENDING), [])
    assert not wait.over(info(JobState.RUNNING), [])
    clock.time += 600
    assert not wait.over(info(JobState.RUNNING), members(ready=1))
    clock.time += 1
    with pytest.raises(EndpointError, match="only 1 of 2 servers ready 600 s after the start of job 42"):
        wait.over(info(JobState.RUNNING), members(ready=1))


def test_a_requeued_job_begins_anew():
    clock = Clock()
    wait = ReadyWait(wanted=1, servers=1, timeout=10, queue_timeout=20, clock=clock)
    wait.over(info(JobState.RUNNING), [])
    clock.time = 9
    wait.over(info(JobState.PENDING), [])
    clock.time = 28
    assert not wait.over(info(JobState.RUNNING), [])
    clock.time = 37
    assert not wait.over(info(JobState.RUNNING), [])
    assert wait.over(info(JobState.RUNNING), members(ready=1))


def test_the_queue_may_have_a_limit_of_its_own():
    clock = Clock()
    wait = ReadyWait(wanted=1, servers=1, timeout=10, queue_timeout=20, clock=clock)
    clock.time = 21
    with pytest.raises(EndpointError, match="still PENDING after 20 s in the queue"):
        wait.over(info(JobState.PENDING), [])


def test_a_slurm_that_is_silent_starts_no_clock():
    clock = Clock()
    wait = ReadyWait(wanted=1, servers=1, timeout=10, clock=clock)
    clock.time = 1000
    assert not wait.over(info(JobState.UNKNOWN), [])


def test_some_of_the_servers_suffice():
    wait = ReadyWait(wanted=3, servers=4, timeout=10)
    assert not wait.over(info(JobState.RUNNING), members(ready=2, gone=1))
    assert wait.over(info(JobState.RUNNING), members(ready=3, gone=1))
    with pytest.raises(EndpointError, match=r"server n2 ended with .*gave up \(and 1 more\)"):
        wait.over(info(JobState.RUNNING), members(ready=2, gone=2))


@pytest.mark.parametrize(
    ("text", "servers", "wanted"),
    [("100%", 8, 8), ("90%", 8, 8), ("50%", 8, 4), ("1%", 8, 1), ("3", 8, 3), ("30", 8, 8), ("34%", 3, 2)],
)
def test_a_number_or_a_share(text: str, servers: int, wanted: int):
    assert least_ready(text, servers) == wanted


def test_the_key_takes_both_and_nothing_else():
    assert resolve(flags={"job.min_ready": 6}, ambient=False).farm.job.min_ready == "6"
    assert resolve(flags={"job.min_ready": "75%"}, ambient=False).farm.job.min_ready == "75%"
    for bad in ("0", "0%", "101%", "half", "1.5", "-1", True):
        with pytest.raises(ConfigError, match="min_ready"):
            resolve(flags={"job.min_ready": bad}, ambient=False)
