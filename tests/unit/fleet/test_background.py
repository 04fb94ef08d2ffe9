"""A monitor in the background: whose endpoint its starter waits for, and what an interruption leaves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.process import Child, kill_session, spawn
from exatrkx_hpc.base.process_id import boot_id, host_name
from exatrkx_hpc.fleet import background
from exatrkx_hpc.fleet.background import start_in_background
from exatrkx_hpc.fleet.endpoint import EndpointRecord, write_endpoint
from exatrkx_hpc.launch.run_dir import RunDir


class Pretended:
    """Starts a sleeping program in the place of a monitor, with an endpoint of its process ID on `host`."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.host = host_name()
        self.child: Child

    def __call__(self, _: object, *, log: Path) -> Child:
        self.child = spawn(["sleep", "60"], log=log)
        record = EndpointRecord(
            job=self.run_dir.job,
            grpc="127.0.0.1:1",
            http="127.0.0.1:2",
            prometheus="",
            metrics={},
            ready=0,
            host=self.host,
            boot=boot_id(),
            monitor_pid=self.child.pid,
            updated=time.time(),
        )
        write_endpoint(self.run_dir, record)
        return self.child

    @property
    def runs(self) -> bool:
        return self.child.returncode() is None


@pytest.fixture
def monitor(tmp_path, monkeypatch):
    made = Pretended(RunDir(tmp_path))
    monkeypatch.setattr(background, "spawn", made)
    monkeypatch.setattr(background, "_START_DEADLINE", 0.3)
    yield made
    kill_session(made.child.pid)


def test_the_endpoint_of_its_monitor_is_waited_for(monitor):
    assert start_in_background(monitor.run_dir, ()).pid == monitor.child.pid
    assert Path(f"/proc/{monitor.child.pid}").exists()


def test_a_process_with_the_same_number_on_another_machine_is_another_monitor(monitor):
    monitor.host = "elsewhere"
    with pytest.raises(EndpointError, match="did not open its endpoint"):
        start_in_background(monitor.run_dir, ())
    assert not monitor.runs


def test_an_interrupted_start_leaves_no_monitor(monitor, monkeypatch):
    def interrupted(_: RunDir) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(background, "read_endpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_in_background(monitor.run_dir, ())
    assert not monitor.runs
