"""The monitor's loop against fake servers: what it applies, what it survives, what it says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import requests
from addresses import own_address
from balancers import RecordingBalancer, free_listen
from fakes.slurm import Cluster
from local_farms import local_farm
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.base.ports import PortTaken, user_port
from exatrkx_hpc.base.process import session_members
from exatrkx_hpc.config.schema import BalancerSection, MonitorSection
from exatrkx_hpc.fleet.balancer.balancers import balancer_of
from exatrkx_hpc.fleet.balancer.base import Balancer
from exatrkx_hpc.fleet.balancer.nginx import find_nginx
from exatrkx_hpc.fleet.endpoint import read_endpoint
from exatrkx_hpc.fleet.events import (
    WITHOUT_PROMETHEUS,
    BalancerReloaded,
    EndpointOpened,
    JobChanged,
    MemberChanged,
    MetricsStoreStarted,
)
from exatrkx_hpc.fleet.members.probe import is_ready
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.sidecars.base import Sidecar
from exatrkx_hpc.fleet.sidecars.prometheus import metrics_store
from exatrkx_hpc.launch.embedded.scheduler import EmbeddedScheduler
from exatrkx_hpc.launch.run_dir import RunDir
from exatrkx_hpc.launch.scheduler import SchedulerSilentError


@pytest.fixture
def job(tmp_path, nginx):
    """A job of two fake servers."""
    ports = {"balancer__grpc_port": 0, "balancer__http_port": 0, "monitor__prometheus_port": 0}
    made = farm.deploy(local_farm(tmp_path, job__nodes=2, **ports))
    until(lambda: len(read_records(made.run_dir)) == 2, what="two records")
    yield made
    farm.stop(made, drain=False)


class Serving:
    """A monitor that looks when the test says so, and the news that it told."""

    def __init__(
        self,
        job: farm.Job,
        *,
        prometheus: bool = False,
        job_info: Callable[[], JobInfo] | None = None,
        balancer: Balancer | None = None,
        store: Sidecar | None = None,
    ) -> None:
        self.news: list[News] = []
        settings = MonitorSection(prometheus=prometheus, prometheus_port=0, scrape_interval=1)
        self.monitor = Monitor(
            run_dir=job.run_dir,
            job_info=job_info or (lambda: job.scheduler.info(job.id)),
            balancer=balancer or balancer_of(job.farm.balancer, job.run_dir.balancer("nginx"), self.news.append),
            metrics_store=store
            or metrics_store(settings, job.run_dir.prometheus, host="127.0.0.1", tell=self.news.append),
            settings=settings,
            tell=self.news.append,
            patience=0,
        )

    @property
    def lines(self) -> list[str]:
        """What a person reads."""
        return [str(news) for news in self.news if news.level is not Level.DEBUG]

    def ready(self, servers: int) -> bool:
        return len(self.monitor.tick().ready) == servers

    def answers(self) -> bool:
        record = read_endpoint(RunDir(self.monitor.logs.parent))
        return record is not None and requests.get(f"http://{record.http}/", timeout=5).ok


def test_the_endpoint_is_in_a_file_while_it_is_kept(job):
    serving = Serving(job)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        record = read_endpoint(job.run_dir)
        assert record is not None
        assert (record.ready, record.grpc, len(record.metrics)) == (2, serving.monitor.endpoint, 2)
        assert (Path(job.farm.run_root) / "latest").resolve() == job.run_dir.path
        until(serving.answers, what="an answer through the balancer")
    assert read_endpoint(job.run_dir) is None


@pytest.fixture
def recording(tmp_path) -> RecordingBalancer:
    return RecordingBalancer(tmp_path, free_listen())


def test_the_balancer_is_told_of_changes_alone(job, recording):
    serving = Serving(job, balancer=recording)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        for _ in range(3):
            serving.monitor.tick()
        started, *updates = recording.calls
        assert started == ("start", ())
        assert all(verb == "update" for verb, _ in updates)
        assert len(set(updates)) == len(updates), "told twice of the same members"
        assert len(updates[-1][1]) == 2
        farm.stop(job, drain=False)
        until(lambda: serving.ready(0), what="the end of both")
        assert recording.calls[-1] == ("update", ())
    assert recording.calls[-1] == ("stop", ())


def test_a_server_that_hangs_stays_for_as_many_looks_as_the_settings_say(job, recording):
    serving = Serving(job, balancer=recording)
    most = MonitorSection().tolerance
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        hangs = read_records(job.run_dir)[0].pid
        os.kill(hangs, signal.SIGSTOP)
        try:
            assert [len(serving.monitor.tick().ready) for _ in range(most)] == [2] * (most - 1) + [1]
        finally:
            os.kill(hangs, signal.SIGCONT)
        until(lambda: serving.ready(2), what="it answers again")


def test_what_happens_is_told_as_news_of_the_job(job, recording):
    serving = Serving(job, balancer=recording)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        assert isinstance(opened := serving.news[0], EndpointOpened)
        assert opened.grpc == serving.monitor.endpoint
        changed = [news for news in serving.news if isinstance(news, MemberChanged)]
        assert changed[-1].ready == 2 and changed[-1].state == "ready"
        assert len([news for news in changed if news.state == "ready"]) == 2
        (reloaded,) = [news for news in serving.news if isinstance(news, BalancerReloaded) and len(news.servers) == 2]
        assert reloaded.level is Level.DEBUG
        farm.stop(job, drain=False)
        until(lambda: serving.ready(0), what="the end of both")
    gone = {news.server for news in serving.news if isinstance(news, MemberChanged) and news.level is Level.WARNING}
    assert gone == set(reloaded.servers)
    assert [news.state for news in serving.news if isinstance(news, JobChanged)][-1] is JobState.CANCELLED
    assert {news.job for news in serving.news} == {job.id}


def test_what_cannot_be_applied_now_is_said_once_and_tried_again(job, recording):
    serving = Serving(job, balancer=recording)
    with serving.monitor.serving():
        recording.trouble = "nginx rejects its new configuration"
        until(lambda: serving.ready(2), what="two ready servers")
        for _ in range(3):
            serving.monitor.tick()
        assert serving.lines.count("balancer: nginx rejects its new configuration") == 1
        recording.trouble = ""
        serving.monitor.tick()
        assert len(recording.calls[-1][1]) == 2
        record = read_endpoint(job.run_dir)
        assert record is not None and record.ready == 2


def test_what_cannot_be_written_now_is_tried_again(job):
    serving = Serving(job)
    candidate = job.run_dir.balancer("nginx") / "candidate"
    with serving.monitor.serving():
        aside = candidate.rename(candidate.with_name("aside"))
        candidate.write_text("a file where a folder was, as little use as a full disk")
        until(lambda: serving.ready(2), what="two ready servers")
        assert len([line for line in serving.lines if line.startswith("balancer: ")]) == 1
        candidate.unlink()
        aside.rename(candidate)
        serving.monitor.tick()
        until(serving.answers, what="an answer through the balancer")


def test_a_balancer_that_has_ended_starts_again_with_the_ready_members(job, recording):
    serving = Serving(job, balancer=recording)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        recording.die()
        serving.monitor.tick()
        assert f"balancer: recording has ended; starts again on {recording.listen.grpc}" in serving.lines
        verb, names = recording.calls[-1]
        assert (verb, len(names)) == ("start", 2)


class RecordingStore:
    """A metrics store that scrapes nothing; `calls` has what it was told: a verb, and how many members."""

    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.runs = False

    def start(self, members: Iterable[Member]) -> None:
        self.calls.append(("start", len(tuple(members))))
        self.runs = True

    def update(self, members: Iterable[Member]) -> None:
        self.calls.append(("update", len(tuple(members))))

    def alive(self) -> bool:
        return self.runs

    def stop(self) -> None:
        self.calls.append(("stop", 0))


def test_the_metrics_store_is_told_of_changes_alone(job, recording):
    store = RecordingStore()
    serving = Serving(job, balancer=recording, store=store)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        for _ in range(3):
            serving.monitor.tick()
        until(lambda: store.calls[-1:] in ([("start", 2)], [("update", 2)]), what="both targets")
        before = list(store.calls)
        assert before in ([("start", 2)], [("start", 1), ("update", 2)])
        farm.stop(job, drain=False)
        until(lambda: serving.ready(0), what="the end of both")
        for _ in range(3):
            serving.monitor.tick()
        until(lambda: store.calls[-1] == ("update", 0), what="no target")
        assert store.calls[len(before) :] in ([("update", 0)], [("update", 1), ("update", 0)])
    assert store.calls[-1] == ("stop", 0)


def test_a_killed_prometheus_starts_again_with_its_targets(job, prometheus):
    serving = Serving(job, prometheus=True)
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        until(lambda: any(isinstance(news, MetricsStoreStarted) for news in serving.news), what="its start")
        os.kill(int((job.run_dir.prometheus / "prometheus.pid").read_text()), signal.SIGKILL)
        until(
            lambda: serving.monitor.tick() and "prometheus: it has ended; starts again" in serving.lines,
            what="its word",
        )
        record = read_endpoint(job.run_dir)
        assert record is not None
        until(
            lambda: len([n for n in serving.news if isinstance(n, MetricsStoreStarted)]) == 2, what="its second start"
        )
        assert requests.get(f"http://{record.prometheus}/-/ready", timeout=5).ok


def test_a_machine_without_prometheus_keeps_an_endpoint_and_says_so(job, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nginx").symlink_to(find_nginx())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    serving = Serving(job, prometheus=True)
    assert serving.lines == [f"prometheus: prometheus is not on PATH; {WITHOUT_PROMETHEUS}"]
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        record = read_endpoint(job.run_dir)
        assert record is not None and record.prometheus == ""
        assert len(record.metrics) == 2, "which 'exatrkx-hpc metrics' and the page of a run ask"


def test_two_monitors_of_a_user_have_two_endpoints(job):
    """The first has the user's own ports; the second says that it has others, and where they are."""
    ours = job.farm.balancer.model_copy(update={"grpc_port": "user", "http_port": "user"})
    first: list[News] = []
    second: list[News] = []
    wanted = {name: user_port(name, os.getuid()) for name in ("grpc", "http")}
    with monitor_of(job, ours, first).serving() as one:
        assert one.endpoint == f"127.0.0.1:{wanted['grpc']}"
        other = monitor_of(job, ours, second, folder="nginx-of-another-job")
        assert other.endpoint != one.endpoint
    assert [type(news) for news in first] == [EndpointOpened]
    taken = [news for news in second if isinstance(news, PortTaken)]
    assert [(news.part, news.own, news.level) for news in taken] == [
        (name, wanted[name], Level.WARNING) for name in ("grpc", "http")
    ]
    assert taken == second and other.endpoint == f"127.0.0.1:{taken[0].port}"
    assert str(second[0]).endswith(f"using {taken[0].port} this time")


def monitor_of(job: farm.Job, balancer: BalancerSection, news: list[News], *, folder: str = "nginx") -> Monitor:
    """A monitor of the job with this balancer in this folder, which tells to `news`."""
    return Monitor(
        run_dir=job.run_dir,
        job_info=lambda: job.scheduler.info(job.id),
        balancer=balancer_of(balancer, job.run_dir.balancer(folder), news.append),
        settings=MonitorSection(prometheus=False),
        tell=news.append,
    )


def test_a_balancer_without_prometheus_is_better_than_none(job, monkeypatch, tmp_path, prometheus):
    serving = Serving(job, prometheus=True)
    job.run_dir.prometheus.write_text("a file where a folder should be")
    with serving.monitor.serving():
        until(lambda: serving.ready(2), what="two ready servers")
        until(lambda: any(line.startswith("prometheus: ") for line in serving.lines), what="its trouble")
        until(serving.answers, what="an answer through the balancer")


class Told:
    """A scheduler's answers, which the test sets; None is silence from the beginning."""

    def __init__(self, job: farm.Job) -> None:
        self.job = job.id
        self.info: JobInfo | None = None
        self.serving = Serving(job, job_info=self)

    def __call__(self) -> JobInfo:
        if self.info is None:
            raise SchedulerSilentError("Slurm does not answer: connect failure; try again")
        return self.info

    def news(self, state: JobState, reason: str = "", *, answered: bool = True) -> list[str]:
        """What two looks say when the scheduler answers so."""
        self.info = JobInfo(id=self.job, state=state, reason=reason, answered=answered)
        return self.looks()

    def looks(self) -> list[str]:
        self.serving.news.clear()
        for _ in range(2):
            self.serving.monitor.tick()
        return [line for line in self.serving.lines if line.startswith("job: ")]


def test_each_change_of_the_job_is_one_line(job):
    told = Told(job)
    ping = "'scontrol ping' shows whether Slurm is back"
    with told.serving.monitor.serving():
        assert told.looks() == [
            f"job: state unknown, the endpoint keeps running (Slurm does not answer: connect failure; {ping})"
        ]
        (line,) = told.news(JobState.PENDING, "Priority")
        assert line.startswith("job: PENDING, Slurm answers again (Priority: other jobs have higher priority; ")
        (line,) = told.news(JobState.PENDING, "Resources")
        assert line.startswith("job: PENDING (Resources: no nodes are free; ")
        assert told.news(JobState.RUNNING) == ["job: RUNNING"]
        assert told.news(JobState.UNKNOWN, "down", answered=False) == [
            f"job: state unknown, the endpoint keeps running (down; {ping})"
        ]
        assert told.news(JobState.UNKNOWN, "Slurm has not answered for 36 s", answered=False) == []
        assert read_endpoint(job.run_dir) is not None
        assert told.news(JobState.RUNNING) == ["job: RUNNING, Slurm answers again"]
        (line,) = told.news(JobState.TIMEOUT, "TimeLimit")
        assert line.startswith(
            "job: TIMEOUT (it reached its time limit (TimeLimit); resubmit it with 'exatrkx-hpc deploy'"
        )


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"\xff\xfe"])
def test_an_endpoint_that_cannot_be_read_is_none(tmp_path, torn):
    run_dir = RunDir(tmp_path)
    run_dir.endpoint.write_bytes(torn)
    run_dir.embedded_job.write_bytes(torn)
    assert read_endpoint(run_dir) is None
    with pytest.raises(LaunchError, match="no job"):
        EmbeddedScheduler(run_root=tmp_path.parent, first_address="127.0.0.2").info(tmp_path.name)


class Pauses(threading.Event):
    """A stop that is never set, and how long a watch waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return False


def test_a_watch_looks_each_interval_and_ends_with_its_job(job, recording):
    states = [JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.COMPLETED]
    left = iter(states)
    pauses = Pauses()
    serving = Serving(job, balancer=recording, job_info=lambda: JobInfo(id=job.id, state=next(left)))
    with serving.monitor.serving():
        assert serving.monitor.watch(stop=pauses).job is JobState.COMPLETED
    assert pauses.seconds == [MonitorSection().interval] * 3
    assert [news.state for news in serving.news if isinstance(news, JobChanged)] == states


def test_a_watch_that_was_stopped_does_not_look_again(job, recording):
    stop = threading.Event()
    stop.set()
    serving = Serving(job, balancer=recording, job_info=lambda: pytest.fail("it looked"))
    with serving.monitor.serving():
        serving.monitor.watch(stop=stop)


def test_a_job_that_nobody_knows_is_not_waited_for(job):
    told = Told(job)
    told.info = JobInfo(id=job.id, state=JobState.RUNNING)
    with told.serving.monitor.serving():
        until(lambda: told.serving.ready(2), what="two ready servers")
        assert len(told.news(JobState.UNKNOWN, "neither squeue nor sacct knows it")) == 1, "they answer all the same"
        farm.stop(job, drain=False)
        with pytest.raises(LaunchError, match=f"job {job.id} is UNKNOWN: neither squeue nor sacct knows it; "):
            until(lambda: told.looks() and False, what="the error")


def test_a_job_that_has_ended_is_not_watched(job):
    farm.stop(job, drain=False)
    with pytest.raises(LaunchError, match=f"job {job.id} is CANCELLED: it was cancelled; .*nothing to monitor"):
        farm.watch(job).start()
    assert not (job.run_dir.balancer("nginx") / "nginx.pid").exists()


def test_another_server_at_the_address_is_not_the_servers_own_answer(job):
    record = read_records(job.run_dir)[0]
    until(lambda: is_ready(record, 1), what="a ready server")
    assert not is_ready(record.model_copy(update={"instance": "another"}), 1)


@pytest.mark.slow
def test_two_farms_never_share_an_address(tmp_path):
    first = own_address(last=1)
    farms = [local_farm(tmp_path / name, cluster__local_address=first) for name in ("one", "two")]
    jobs = [farm.deploy(one) for one in farms]
    try:
        records = [until(lambda j=j: read_records(j.run_dir), what="a record")[0] for j in jobs]
        assert {r.address for r in records} == {first, first.removesuffix(".1") + ".2"}
    finally:
        for job in jobs:
            farm.stop(job, drain=False)


def test_a_job_whose_first_process_was_killed_is_still_stopped(job):
    scheduler = job.scheduler
    assert isinstance(scheduler, EmbeddedScheduler)
    session = scheduler._read(job.id).session
    os.kill(session, signal.SIGKILL)
    until(lambda: job.scheduler.info(job.id).state.over, what="the end of the job")
    assert session_members(session)
    farm.stop(job)
    assert session_members(session) == []


@pytest.mark.parametrize("attempt", range(3))
def test_a_stop_right_after_the_start_is_not_lost(tmp_path, attempt):
    made = farm.deploy(local_farm(tmp_path))
    scheduler = made.scheduler
    assert isinstance(scheduler, EmbeddedScheduler)
    session = scheduler._read(made.id).session
    farm.stop(made)
    assert session_members(session) == []
    assert all(record.state == "gone" for record in read_records(made.run_dir))


class CannotCancel(EmbeddedScheduler):
    """A scheduler whose cancel fails, as Slurm's does when slurmctld is down."""

    def cancel(self, job: str, *, drain: bool = True) -> None:
        super().cancel(job, drain=drain)
        raise LaunchError("scancel refused")


def test_a_cancel_that_fails_still_stops_the_monitor(tmp_path, nginx, monkeypatch):
    what = local_farm(tmp_path, balancer__grpc_port=0, balancer__http_port=0, monitor__prometheus=False)
    broken = CannotCancel(run_root=tmp_path, first_address=what.cluster.local_address)
    monkeypatch.setattr(farm, "scheduler_of", lambda _: broken)
    with pytest.raises(LaunchError, match="scancel refused"), farm.running(what, wait=30):
        pid = int((tmp_path / "1" / "nginx" / "nginx.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_what_fails_after_the_submission_ends_the_job(tmp_path, monkeypatch):
    (tmp_path / "fake").mkdir()
    slurm = Cluster(tmp_path / "fake")
    slurm.put_on_path(monkeypatch)
    slurm.knows(4242, log=f"{tmp_path}/root/job-4242.log")
    what = local_farm(tmp_path / "root", cluster__scheduler="slurm")
    (tmp_path / "root" / "4242").write_text("the job's run directory cannot be made")
    with pytest.raises(LaunchError, match="4242"):
        farm.deploy(what, trust_run_root=True)
    assert slurm.calls("scancel")
