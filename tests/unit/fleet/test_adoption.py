"""The balancer outlives its monitor: killed, left, closed with its terminal; the next monitor takes it over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from addresses import own_address
from command import PROGRAM, exatrkx_hpc
from local_farms import FAKE_TRITON
from waiting import until

from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.base.process import Child, session_members, spawn
from exatrkx_hpc.fleet.endpoint import EndpointRecord, identity_at, read_endpoint
from exatrkx_hpc.launch.run_dir import RunDir

pytestmark = pytest.mark.part


class Site:
    """A job of two fake servers, deployed by the command line, and its monitors."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run_dir = RunDir(home / "exatrkx-hpc" / "1")
        self.monitors: list[Child] = []

    def monitor(self, *words: str) -> Child:
        log = self.home / f"monitor-{len(self.monitors)}.log"
        variables = {**os.environ, "HOME": str(self.home)}
        child = spawn([PROGRAM, "monitor", "1", *words], log=log, cwd=self.home, env=variables)
        self.monitors.append(child)
        until(lambda: (found := self.record()) is not None and found.monitor_pid == child.pid, what=log.read_text)
        return child

    def log(self, number: int = -1) -> str:
        return (self.home / f"monitor-{number % len(self.monitors)}.log").read_text()

    def record(self) -> EndpointRecord | None:
        return read_endpoint(self.run_dir)

    def nginx(self) -> int:
        return int((self.run_dir.balancer("nginx") / "nginx.pid").read_text())

    def ready(self, servers: int) -> EndpointRecord:
        def found() -> EndpointRecord | None:
            now = self.record()
            return now if now is not None and now.ready == servers else None

        record = until(found, what=f"{servers} ready servers")
        assert record is not None
        return record

    def command(self, *words: str) -> str:
        return exatrkx_hpc(*words, cwd=self.home).stdout


@pytest.fixture
def site(request, tmp_path, nginx) -> Iterator[Site]:
    models = tmp_path / "exatrkx-hpc" / "model_repository"
    (models / "echo" / "1").mkdir(parents=True)
    (models / "echo" / "config.pbtxt").write_text('name: "echo" backend: "identity"')
    ports = f"grpc_port = {free_port('127.0.0.1')}\nhttp_port = {free_port('127.0.0.1')}"
    (tmp_path / "farm.toml").write_text(
        f'site = "local"\n[cluster]\nlocal_address = "{own_address(last=1)}"\n[job]\nnodes = 2\n'
        f'[server]\ntriton = "{FAKE_TRITON}"\ndrain = 1\n[balancer]\n{ports}\n'
        "[monitor]\nprometheus = false\ntrial = false\n"
    )
    made = Site(tmp_path)
    done = exatrkx_hpc("deploy", *getattr(request, "param", ()), cwd=tmp_path)
    assert done.stdout == "1\n", done.stderr
    yield made
    for child in made.monitors:
        child.stop(grace=5)
    exatrkx_hpc("stop", "1", cwd=tmp_path)
    assert not processes_of(made.run_dir), "the job's nginx is left"


def processes_of(run_dir: RunDir) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command.startswith("nginx: master") and str(run_dir) in command:
                found.append(command)
    return found


class Load(threading.Thread):
    """Requests over HTTP, each with a connection of its own, which nobody repeats; `failures` has each that failed."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self.server = server
        self.answers = 0
        self.failures: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            try:
                with requests.get(f"http://{self.server}/v2", timeout=30) as answer:
                    answer.raise_for_status()
                self.answers += 1
            except requests.RequestException as error:
                self.failures.append(str(error))
            time.sleep(0.005)

    def __enter__(self) -> Load:
        self.start()
        until(lambda: self.answers > 50, what="the first answers")
        self.failures.clear()  # the reload with the first servers was still on its way
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        self.join(30)

    def more(self, number: int = 20) -> None:
        wanted = self.answers + number
        until(lambda: self.answers >= wanted, what="more answers")


def test_a_killed_monitors_nginx_serves_and_the_next_monitor_adopts_it(site):
    """Neither the kill nor the adoption costs a request."""
    first = site.monitor()
    before = site.ready(2)
    nginx = site.nginx()
    load = Load(before.http)
    with load:
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: first.returncode() is not None, what="its end")
        load.more()
        assert json.loads(site.command("status", "1", "--json"))[0]["monitor"]["runs"] is False
        assert "no monitor since" in " ".join(site.command("status", "1").split())
        assert any("no monitor since" in finding["found"] for finding in json.loads(site.command("doctor", "--json")))
        site.monitor()
        load.more()
        after = site.ready(2)
        load.more()
    assert load.failures == [] and load.answers > 50
    assert site.nginx() == nginx == after.balancer_pid == before.balancer_pid
    assert after.identity == before.identity == identity_at(after.http)
    assert "taken over from an earlier monitor" in site.log()


def test_an_adopted_nginx_follows_the_servers_and_ends_with_its_monitor(site):
    first = site.monitor()
    site.ready(2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    second = site.monitor()
    victim = json.loads(next(iter(sorted(site.run_dir.records.glob("*.json")))).read_text())
    os.kill(victim["pid"], signal.SIGSTOP)
    try:
        site.ready(1)
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
    site.ready(2)
    second.send(signal.SIGTERM)
    assert second.wait(20) == 128 + signal.SIGTERM
    assert processes_of(site.run_dir) == [] and site.record() is None


@pytest.mark.parametrize(
    ("words", "end", "code"),
    [((), signal.SIGHUP, 128 + signal.SIGHUP), (("--leave",), signal.SIGTERM, 143), (("--leave",), signal.SIGINT, 0)],
)
def test_leaving_is_not_stopping(site, words, end, code):
    """A terminal that is closed is no decision to stop; --leave is one to leave."""
    child = site.monitor(*words)
    record = site.ready(2)
    child.send(end)
    assert child.wait(20) == code, site.log()
    assert identity_at(record.http) == record.identity
    if end == signal.SIGINT:
        assert f"{record.grpc} still serves, with its last servers" in site.log()
    done = exatrkx_hpc("stop", "1", cwd=site.home)
    assert done.returncode == 0, done.stderr
    assert identity_at(record.http) == "" and site.record() is None


def test_a_detached_monitor_survives_its_terminal_and_says_how_to_stop_it(site):
    told = json.loads(site.command("monitor", "--detach", "--json"))
    try:
        record = site.ready(2)
        assert (told["grpc"], told["pid"], told["job"]) == (record.grpc, record.monitor_pid, "1")
        assert os.getsid(told["pid"]) == told["pid"] != os.getsid(0), "a session of its own has no terminal"
        assert "member-changed" in Path(told["log"]).read_text()
        refused = exatrkx_hpc("monitor", "--detach", cwd=site.home)
        assert refused.returncode == 5 and "another monitor is running for job 1" in refused.stderr
        os.kill(told["pid"], signal.SIGTERM)
        until(lambda: site.record() is None, what="the end of the endpoint")
        until(lambda: session_members(told["pid"]) == [], what="its end")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(told["pid"], signal.SIGTERM)


@pytest.mark.parametrize("site", [("--with", "monitor")], indirect=True)
def test_a_monitor_beside_the_servers_is_started_again_and_ends_with_them(site):
    """A killed monitor ends neither its nginx nor the servers: the job starts another, which takes over."""
    before = site.ready(2)
    os.kill(before.monitor_pid, signal.SIGKILL)

    def again() -> EndpointRecord | None:
        now = site.record()
        return now if now is not None and now.monitor_pid != before.monitor_pid and now.ready == 2 else None

    after = until(again, what="another monitor")
    assert after is not None
    assert (after.balancer_pid, after.identity) == (before.balancer_pid, before.identity)
    assert json.loads(site.command("status", "1", "--json"))[0]["state"] == "RUNNING"
    done = exatrkx_hpc("stop", "1", cwd=site.home)
    assert done.stdout == "job 1: CANCELLED\n", done.stderr
    until(lambda: site.record() is None and not processes_of(site.run_dir), what="the end of the endpoint")
    assert after.monitor_pid not in living(site.run_dir)


def living(run_dir: RunDir) -> list[int]:
    """The processes of the job's session."""
    return session_members(json.loads(run_dir.embedded_job.read_text())["session"])
