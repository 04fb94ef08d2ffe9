"""What the monitor cannot observe or apply stays as it was; each fault here ended the endpoint, or a server, before."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from balancers import RecordingBalancer, free_listen
from server_records import record
from waiting import until

from exatrkx_hpc.base import process
from exatrkx_hpc.base.errors import EndpointError, LaunchError, MissingComponent, NotStarted
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import News
from exatrkx_hpc.base.process_id import host_name
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet import monitor as monitor_module
from exatrkx_hpc.fleet import status
from exatrkx_hpc.fleet.endpoint import read_endpoint, write_endpoint
from exatrkx_hpc.fleet.events import BalancerReloaded, BalancerWarned, NotApplied, NotObserved, SchedulerSilent
from exatrkx_hpc.fleet.lease import LeaseLost
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.members.record import ServerRecord, read_records
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.launch.run_dir import RunDir


class Prober:
    """Asks as fleet/status.py does, where each test says what the servers answer."""

    def __call__(self, records: Iterable[ServerRecord], timeout: float) -> dict[str, bool]:
        return status.probe(records, timeout)

    def close(self) -> None:
        pass


class Farm:
    """A run directory with two servers that answer, and a monitor with a balancer that only records."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, store: object = None) -> None:
        self.run_dir = RunDir(folder / "7")
        self.run_dir.records.mkdir(parents=True)
        for name in ("n1-0", "n2-0"):
            self.write(name)
        self.answers = {"n1-0", "n2-0"}
        self.info: Callable[[], JobInfo] = lambda: JobInfo(id="7", state=JobState.RUNNING)
        monkeypatch.setattr(
            status, "probe", lambda records, timeout: {one.server: one.server in self.answers for one in records}
        )
        monkeypatch.setattr(monitor_module, "Prober", Prober)
        self.news: list[News] = []
        self.balancer = RecordingBalancer(folder, free_listen())
        self.monitor = Monitor(
            run_dir=self.run_dir,
            job_info=self.ask,
            balancer=self.balancer,
            metrics_store=store,
            settings=MonitorSection(interval=0.01),
            tell=self.tell,
        )

    def ask(self) -> JobInfo:
        return self.info()

    def tell(self, news: News) -> None:
        self.news.append(news)

    def write(self, name: str) -> None:
        (self.run_dir.records / f"{name}.json").write_text(record(name).model_dump_json())

    def ready(self) -> int:
        return len(self.monitor.tick().ready)

    def told(self, kind: type[News]) -> list[News]:
        return [news for news in self.news if isinstance(news, kind)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A farm whose two servers are in the endpoint."""
    farm = Farm(tmp_path, monkeypatch)
    with farm.monitor.serving():
        assert farm.ready() == 2
        yield farm


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, errno.errorcode[number])

    return fail


# Records


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_record_that_cannot_be_read_is_the_last_known_one(kept, monkeypatch, number):
    real = Path.read_bytes
    broken = kept.run_dir.records / "n1-0.json"
    monkeypatch.setattr(Path, "read_bytes", lambda path: failing(number)() if path == broken else real(path))
    assert [kept.ready() for _ in range(3)] == [2, 2, 2]
    assert len(kept.told(NotObserved)) == 1 and "n1-0" in str(kept.told(NotObserved)[0])
    kept.answers = {"n2-0"}
    tolerance = MonitorSection().tolerance
    assert [kept.ready() for _ in range(tolerance)] == [2] * (tolerance - 1) + [1], "its silence counts all the same"


def test_a_record_that_a_full_disk_left_empty_is_the_last_known_one(kept):
    (kept.run_dir.records / "n1-0.json").write_text("")
    assert kept.ready() == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
def test_a_records_folder_that_cannot_be_read_changes_nothing(kept, monkeypatch, number):
    monkeypatch.setattr(Path, "iterdir", failing(number))
    assert [kept.ready() for _ in range(3)] == [2, 2, 2]


def test_an_evicted_mount_changes_nothing(kept):
    shutil.move(kept.run_dir.path, kept.run_dir.path.with_name("aside"))
    assert [kept.ready() for _ in range(3)] == [2, 2, 2]
    shutil.move(kept.run_dir.path.with_name("aside"), kept.run_dir.path)
    assert kept.ready() == 2


def test_a_record_that_was_removed_is_gone(kept):
    (kept.run_dir.records / "n1-0.json").unlink()
    assert kept.ready() == 1


def test_records_that_were_never_read_are_none(tmp_path):
    assert read_records(RunDir(tmp_path)) == ()


# Programs, threads, files


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.EIO])
def test_a_fork_that_fails_is_no_missing_program(monkeypatch, tmp_path, number):
    monkeypatch.setattr(process.subprocess, "Popen", failing(number))
    for start in (lambda: process.run(["true"]), lambda: process.spawn(["true"], log=tmp_path / "log")):
        with pytest.raises(NotStarted, match="true cannot be started now"):
            start()


def test_a_missing_program_is_missing():
    with pytest.raises(MissingComponent) as missing:
        process.run(["no-such-program-anywhere"])
    assert not isinstance(missing.value, NotStarted)


@pytest.mark.parametrize(
    "error", [NotStarted("squeue cannot be started now"), RuntimeError("can't start new thread"), OSError(5, "EIO")]
)
def test_a_scheduler_that_cannot_be_asked_is_silent(kept, error):
    def info() -> JobInfo:
        raise error

    kept.info = info
    assert [kept.ready() for _ in range(3)] == [2, 2, 2]
    assert len(kept.told(SchedulerSilent)) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files"), MemoryError()]
)
def test_servers_that_cannot_be_probed_stay(kept, monkeypatch, error):
    def probe(*_: object) -> None:
        raise error

    monkeypatch.setattr(status, "probe", probe)
    assert [kept.ready() for _ in range(5)] == [2] * 5
    assert len(kept.told(NotObserved)) == 1


def test_without_a_free_file_no_server_is_taken_for_dead(kept, monkeypatch):
    monkeypatch.setattr(monitor_module.socket, "socket", failing(errno.EMFILE))
    kept.answers = set()
    assert [kept.ready() for _ in range(5)] == [2] * 5


@pytest.mark.parametrize("error", [NotStarted("nginx cannot be started now"), EndpointError("no"), OSError(28, "full")])
def test_a_change_that_cannot_be_applied_is_tried_again(kept, monkeypatch, error):
    def update(_: Iterable[Member]) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(kept.balancer, "update", update)
        (kept.run_dir.records / "n1-0.json").unlink()
        for _ in range(3):
            kept.ready()
    assert len(kept.told(NotApplied)) == 1
    kept.ready()
    assert kept.balancer.calls[-1] == ("update", ("n2-0",))


# Output


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), BrokenPipeError(), ValueError("closed file")])
def test_news_that_nobody_can_hear_end_nothing(kept, monkeypatch, error):
    def tell(news: News) -> None:
        raise error

    monkeypatch.setattr(kept, "tell", tell)
    kept.monitor.tell = monitor_module.unfailing(tell)
    kept.answers = {"n1-0"}
    until(lambda: kept.ready() == 1, what="the change")


# Reloads


def test_nothing_is_reloaded_at_every_look_when_latest_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "latest").mkdir()
    farm = Farm(tmp_path, monkeypatch)
    with farm.monitor.serving():
        for _ in range(4):
            assert farm.ready() == 2
        assert [verb for verb, _ in farm.balancer.calls] == ["start", "update"]
        assert len(farm.told(NotApplied)) == 1
        assert read_endpoint(farm.run_dir) is not None
        assert len(farm.told(BalancerReloaded)) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_complaint_of_the_balancer_is_told(kept):
    kept.balancer.complaints.append("nginx has no connection left")
    kept.ready()
    assert [str(news) for news in kept.told(BalancerWarned)] == ["balancer: nginx has no connection left"]


def test_the_heartbeat_is_renewed_without_any_change(kept, monkeypatch):
    first = read_endpoint(kept.run_dir)
    monkeypatch.setattr(monitor_module, "_BEAT", 0.0)
    time.sleep(0.01)
    kept.ready()
    later = read_endpoint(kept.run_dir)
    assert first is not None and later is not None
    assert later.heartbeat > first.heartbeat and later.updated == first.updated


# The loop


class Flaky:
    """A tick that fails so many times."""

    def __init__(self, monitor: Monitor, error: Exception, times: int) -> None:
        self.real, self.error, self.left = monitor.tick, error, times

    def __call__(self) -> object:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return self.real()


def ends_after(farm: Farm, looks: int) -> Callable[[], JobInfo]:
    left = iter([JobState.RUNNING] * looks)
    return lambda: JobInfo(id="7", state=next(left, JobState.COMPLETED))


def test_a_look_that_fails_is_told_once_and_the_next_one_tries_again(kept, monkeypatch):
    monkeypatch.setattr(kept.monitor, "tick", Flaky(kept.monitor, KeyError("a fault of ours"), 5))
    kept.info = ends_after(kept, 2)
    assert kept.monitor.watch(stop=threading.Event()).job is JobState.COMPLETED
    assert [str(news) for news in kept.told(NotObserved)] == [
        "monitor: not observed (KeyError: 'a fault of ours'); the endpoint keeps its last state"
    ]


@pytest.mark.parametrize(("error", "ends"), [(KeyError("ours"), True), (OSError(5, "EIO"), False)])
def test_a_fault_of_our_own_ends_the_monitor_after_ten_minutes_and_leaves_the_balancer(
    tmp_path, monkeypatch, error, ends
):
    monkeypatch.setattr(monitor_module, "_BLIND", -1.0)
    farm = Farm(tmp_path, monkeypatch)
    with farm.monitor.serving():
        farm.ready()
        monkeypatch.setattr(farm.monitor, "tick", Flaky(farm.monitor, error, 5))
        farm.info = ends_after(farm, 1)
        if ends:
            with pytest.raises(KeyError):
                farm.monitor.watch(stop=threading.Event())
        else:
            farm.monitor.watch(stop=threading.Event())
    assert farm.balancer.calls[-1] == (("leave", ()) if ends else ("stop", ()))
    assert (read_endpoint(farm.run_dir) is not None) == ends


def test_a_look_that_fails_does_not_undo_the_decision_to_leave(tmp_path, monkeypatch):
    farm = Farm(tmp_path, monkeypatch)
    with farm.monitor.serving():
        monkeypatch.setattr(farm.monitor, "tick", Flaky(farm.monitor, KeyError("ours"), 1))
        farm.info = ends_after(farm, 1)
        farm.monitor.leaving = True
        farm.monitor.watch(stop=threading.Event())
    assert farm.balancer.calls[-1] == ("leave", ())


@pytest.mark.parametrize(("host", "last"), [("elsewhere", "stop"), (host_name(), "leave")])
def test_a_monitor_whose_job_another_has_taken_over_ends_with_what_is_its_own(tmp_path, monkeypatch, host, last):
    """One of this machine has adopted the balancer. One of another machine has its own, and its own endpoint.json."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    monkeypatch.setattr(monitor_module, "_BEAT", 0.0)
    farm = Farm(tmp_path, monkeypatch)
    with farm.monitor.serving():
        farm.ready()
        farm.monitor.leaving = True
        lease = json.loads(farm.run_dir.monitor_lease.read_text())
        farm.run_dir.monitor_lease.write_text(json.dumps({**lease, "host": host, "token": "another"}))
        ours = read_endpoint(farm.run_dir)
        assert ours is not None
        if host == "elsewhere":
            write_endpoint(farm.run_dir, ours.model_copy(update={"host": host}))
        farm.answers = {"n1-0"}
        with pytest.raises(LeaseLost, match=f"on {host}, .*has taken over job 7"):
            farm.monitor.watch(stop=threading.Event())
    assert [verb for verb, _ in farm.balancer.calls] == ["start", "update", last]
    assert read_endpoint(farm.run_dir) is not None and farm.run_dir.monitor_lease.exists()


def test_a_job_that_is_lost_ends_the_endpoint(tmp_path, monkeypatch):
    farm = Farm(tmp_path, monkeypatch)
    farm.answers = set()
    farm.monitor._patience = 0.0
    farm.info = lambda: JobInfo(id="7", state=JobState.UNKNOWN, reason="nobody knows it")
    with farm.monitor.serving(), pytest.raises(LaunchError, match="nobody knows it"):
        farm.monitor.watch(stop=threading.Event())
    assert farm.balancer.calls[-1] == ("stop", ())


# Prometheus


class Store:
    """A metrics store that starts when it may, or fails."""

    address = "127.0.0.1:1"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_start = threading.Event()
        self.started = self.stopped = 0

    def start(self, members: Iterable[Member]) -> None:
        self.started += 1
        if self.error is not None:
            raise self.error
        self.may_start.wait(30)

    def update(self, members: Iterable[Member]) -> None:
        pass

    def alive(self) -> bool:
        return True

    def stop(self) -> None:
        self.stopped += 1
        self.may_start.set()


def test_a_prometheus_that_replays_its_log_delays_nothing(tmp_path, monkeypatch):
    store = Store()
    farm = Farm(tmp_path, monkeypatch, store)
    with farm.monitor.serving():
        assert farm.ready() == 2
        until(lambda: store.started, what="the start of Prometheus")
        kept = [farm.ready() for _ in range(3)]
        farm.answers = {"n1-0"}
        until(lambda: farm.ready() == 1, what="a change while it starts")
        assert kept == [2, 2, 2] and not store.may_start.is_set()
    assert store.stopped and farm.balancer.calls[-1] == ("stop", ())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), NotStarted("no"), KeyError("ours")])
def test_a_prometheus_that_cannot_start_is_a_warning(tmp_path, monkeypatch, error):
    farm = Farm(tmp_path, monkeypatch, Store(error))
    with farm.monitor.serving():
        assert farm.ready() == 2
        until(lambda: farm.told(NotApplied), what="its warning")
        assert farm.ready() == 2
    assert {news.part for news in farm.told(NotApplied)} == {"prometheus"}


def test_without_a_thread_for_prometheus_the_endpoint_goes_on(tmp_path, monkeypatch):
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    farm = Farm(tmp_path, monkeypatch, Store())
    with farm.monitor.serving():
        monkeypatch.setattr(threading.Thread, "start", start)
        assert [farm.ready() for _ in range(3)] == [2, 2, 2]
        assert len(farm.told(NotApplied)) == 1
        monkeypatch.undo()


def test_endpoint_json_says_who_keeps_it(kept):
    facts = json.loads(kept.run_dir.endpoint.read_text())
    assert facts["identity"] == "exatrkx/0/1"
    assert facts["host"] and facts["boot"] and facts["monitor_started"] > 0 and facts["heartbeat"] > 0
