"""The demo as a user runs it, to its end and interrupted at any moment: nothing may be left."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from command import PROGRAM, exatrkx_hpc
from segments import SHARED_MEMORY, abandoned
from waiting import until

from exatrkx_hpc.base.process import spawn
from exatrkx_hpc.demo import DemoSettings, _farm

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx", "prometheus")]


def about(folder: Path) -> list[str]:
    """The processes that have something to do with a folder: by their command or by where they are."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.status() != "zombie" and (str(folder) in words or process.cwd() == str(folder)):
                found.append(f"{process.pid} {words[:120]}")
        except psutil.Error:
            continue
    return found


def listening() -> set[str]:
    connections = psutil.net_connections(kind="tcp")
    return {f"{c.laddr.ip}:{c.laddr.port}" for c in connections if c.status == psutil.CONN_LISTEN}


def test_the_demo_does_it_all_and_leaves_nothing(tmp_path):
    done = exatrkx_hpc("demo", "--events", 20, "--json", cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["report"]["done"], result["report"]["failed"]) == (20, [])
    assert result["efficiency"] >= 0.93
    assert result["fake_rate"] <= 0.05
    assert set(result["compute_shares"]) == {"embed", "frnn", "filter", "applyfilter", "gnn", "wcc"}
    assert sum(result["compute_shares"].values()) == pytest.approx(1.0)
    assert len(list((tmp_path / "demo-results" / "results" / "labels").glob("*.csv"))) == 20
    page = (tmp_path / "demo-results" / "results" / "report.html").read_text()
    assert re.findall('<figure id="([a-z]+)"', page) == ["throughput", "latency", "members", "stages"]
    assert about(tmp_path) == []
    addresses = {result["endpoint"], result["prometheus"], result["report"]["server"]}
    assert not addresses & listening()


def test_the_demos_farm_is_its_own_whatever_the_folder_says(tmp_path, monkeypatch):
    (tmp_path / "farm.toml").write_text('site = "generic"\n[server]\nengine = "podman"\nimage = "x"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXATRKX_HPC_SERVER_MODEL_REPOSITORY", str(tmp_path / "mine"))
    what = _farm(DemoSettings(folder=tmp_path / "demo"))
    assert (what.cluster.scheduler, what.server.engine) == ("local", "none")
    assert what.server.model_repository == str(tmp_path / "demo" / "run" / "model_repository")


#: The demo's own lines mark the moments: before anything runs, servers starting, events under way.
MOMENTS = ["models: building", "starting", " s after the start"]


@pytest.mark.chaos
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path, moment):
    """The signal goes to the whole foreground group, as a terminal sends it, and a second one follows."""
    segments = set(SHARED_MEMORY.glob("exatrkx*"))
    log = tmp_path / "demo.log"
    argv = [PROGRAM, "demo", "--events", "200", "--folder", str(tmp_path / "demo")]
    child = spawn(argv, log=log, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    try:
        until(lambda: moment in log.read_text(), what=moment, deadline=180)
        os.killpg(child.pid, signal.SIGINT)
        child.wait(0.3)
        if child.returncode() is None:
            os.killpg(child.pid, signal.SIGINT)
        code = child.wait(60)
        assert code is not None, f"still at work: {log.read_text()}"
        assert code != 0
        assert "Traceback" not in log.read_text()
        until(lambda: not about(tmp_path), what=f"no process; left: {about(tmp_path)}", deadline=10)
        assert not abandoned(segments)
    finally:
        child.stop(grace=1)


@pytest.mark.chaos
def test_keep_leaves_the_farm_up_until_ctrl_c(tmp_path):
    log = tmp_path / "demo.log"
    argv = [PROGRAM, "demo", "--events", "2", "--servers", "1", "--keep", "--folder", str(tmp_path / "demo")]
    child = spawn(argv, log=log, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    try:
        until(lambda: "press Ctrl-C to stop it" in log.read_text(), what="the demo to linger", deadline=180)
        server = log.read_text().partition(" endpoint: ")[2].split()[0]
        events = tmp_path / "demo" / "events"
        again = exatrkx_hpc("run-clients", "-s", server.rstrip(","), "-d", events, "-n", 1, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        child.send(signal.SIGINT)
        assert child.wait(60) == 0, log.read_text()
        assert about(tmp_path) == []
    finally:
        child.stop(grace=1)
