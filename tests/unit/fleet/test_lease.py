"""The right to be a job's monitor: a lock, or a lease where the file system knows no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.news import News
from exatrkx_hpc.base.process import spawn
from exatrkx_hpc.base.process_id import process_id
from exatrkx_hpc.fleet import lease
from exatrkx_hpc.fleet.events import LocksMissing
from exatrkx_hpc.fleet.lease import EXPIRES, LeaseLost, only_monitor_of
from exatrkx_hpc.launch.run_dir import RunDir


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    made = RunDir(tmp_path / "7")
    made.path.mkdir()
    return made


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def quiet(_: News) -> None:
    """Nobody listens."""


def held(**changes: Any) -> dict[str, Any]:
    """The lease of this very process, with changes."""
    here = process_id(os.getpid())
    assert here is not None
    facts = {"host": here.host, "boot": here.boot, "pid": here.pid, "started": here.started}
    return {**facts, "token": "another", "heartbeat": time.time(), **changes}


def test_a_lock_keeps_a_second_monitor_away_and_tells_nothing(run_dir):
    news: list[News] = []
    with only_monitor_of(run_dir, news.append) as renew:
        renew()
        with (
            pytest.raises(EndpointError, match="another monitor is running for job 7"),
            only_monitor_of(run_dir, quiet),
        ):
            pytest.fail("there are two")
    with only_monitor_of(run_dir, quiet):
        pass
    assert news == [] and not run_dir.monitor_lease.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_told_and_has_a_lease(run_dir, monkeypatch, number):
    refuse(monkeypatch, number)
    news: list[News] = []
    with only_monitor_of(run_dir, news.append) as renew:
        assert [type(one) for one in news] == [LocksMissing] and os.strerror(number) in str(news[0])
        before = json.loads(run_dir.monitor_lease.read_text())
        time.sleep(0.01)
        renew()
        after = json.loads(run_dir.monitor_lease.read_text())
        assert after["heartbeat"] > before["heartbeat"] and after["token"] == before["token"]
        with (
            pytest.raises(EndpointError, match="another monitor is running for job 7 on "),
            only_monitor_of(run_dir, quiet),
        ):
            pytest.fail("there are two")
    assert not run_dir.monitor_lease.exists()


def test_another_trouble_of_the_lock_is_no_other_monitor(run_dir, monkeypatch):
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(EndpointError, match=r"cannot lock .*Input/output error"), only_monitor_of(run_dir, quiet):
        pytest.fail("it has no lock")


def test_the_lease_of_a_killed_monitor_of_this_machine_is_void_at_once(run_dir, monkeypatch, tmp_path):
    child = spawn(["sleep", "60"], log=tmp_path / "log")
    holder = process_id(child.pid)
    assert holder is not None
    facts = held(pid=holder.pid, started=holder.started)
    run_dir.monitor_lease.write_text(json.dumps(facts))
    refuse(monkeypatch, errno.ENOSYS)
    try:
        with pytest.raises(EndpointError, match=f"process {child.pid}"), only_monitor_of(run_dir, quiet):
            pytest.fail("its holder lives")
    finally:
        child.stop(grace=0)
    with only_monitor_of(run_dir, quiet):
        assert json.loads(run_dir.monitor_lease.read_text())["pid"] == os.getpid()


def test_the_lease_of_another_machine_expires(run_dir, monkeypatch):
    refuse(monkeypatch, errno.ENOSYS)
    run_dir.monitor_lease.write_text(json.dumps(held(host="elsewhere", heartbeat=time.time() - EXPIRES / 2)))
    with pytest.raises(EndpointError, match="on elsewhere"), only_monitor_of(run_dir, quiet):
        pytest.fail("it was renewed a moment ago")
    run_dir.monitor_lease.write_text(json.dumps(held(host="elsewhere", heartbeat=time.time() - 2 * EXPIRES)))
    with only_monitor_of(run_dir, quiet):
        pass


def test_a_monitor_that_slept_too_long_leaves(run_dir, monkeypatch):
    """Another has taken its lease: it neither renews nor removes what is not its own."""
    refuse(monkeypatch, errno.ENOSYS)
    with only_monitor_of(run_dir, quiet) as renew:
        run_dir.monitor_lease.write_text(json.dumps(held()))
        with pytest.raises(LeaseLost, match="has taken over job 7"):
            renew()
    assert json.loads(run_dir.monitor_lease.read_text())["token"] == "another"


@pytest.mark.parametrize("fresh", [True, False], ids=["written", "being written"])
def test_of_two_monitors_that_find_a_void_lease_one_gets_it(run_dir, monkeypatch, fresh):
    """The other is so slow that it renames the new lease; it gives that back, and is refused."""
    refuse(monkeypatch, errno.ENOSYS)
    new = json.dumps(held(token="the faster one's")) if fresh else ""
    run_dir.monitor_lease.write_text(json.dumps(held(host="elsewhere", heartbeat=0)))
    real = Path.rename

    def slow(path: Path, to: Path) -> Path:
        path.unlink()
        path.write_text(new)
        return real(path, to)

    monkeypatch.setattr(Path, "rename", slow)
    with pytest.raises(EndpointError, match="another monitor is running"), only_monitor_of(run_dir, quiet):
        pytest.fail("there are two")
    assert [path.read_text() for path in run_dir.path.iterdir() if "lease" in path.name] == [new]


def test_a_lease_that_cannot_be_read_is_replaced(run_dir, monkeypatch):
    refuse(monkeypatch, errno.ENOSYS)
    run_dir.monitor_lease.write_text("")
    with pytest.raises(EndpointError, match="another monitor is running"), only_monitor_of(run_dir, quiet):
        pytest.fail("it is being written")
    os.utime(run_dir.monitor_lease, (0, 0))
    with only_monitor_of(run_dir, quiet):
        assert lease.Lease.model_validate_json(run_dir.monitor_lease.read_text()).pid == os.getpid()
