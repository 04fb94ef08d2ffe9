"""The demo as a user runs it, to its end: nothing may be left."""

from __future__ import annotations

import json
import re

import psutil
import pytest
from command import exatrkx_hpc
from processes_about import about

from exatrkx_hpc import demo
from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.news import untold
from exatrkx_hpc.demo import DemoSettings, _farm

pytestmark = pytest.mark.usefixtures("triton", "nginx", "prometheus")


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


def test_the_demo_of_traccc_finds_the_tracks_of_both_servers(tmp_path):
    pytest.importorskip("acts")
    done = exatrkx_hpc("demo", "--workload", "traccc", "--events", 6, "--json", cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    report = result["report"]
    assert (report["done"], report["failed"], report["retries"]) == (6, [], 0)
    assert len(report["members"]) == 2 and min(report["members"].values()) >= 2, "balanced"
    assert (report["item"], report["model"]) == ("cells", "traccc-cpu") and report["counts"]["tracks"] > 600
    assert result["efficiency"] >= 0.96
    assert result["fake_rate"] <= 0.02
    assert result["compute_shares"] == {"traccc-cpu": 1.0}
    assert len(list((tmp_path / "demo-results" / "results" / "tracks").glob("*.npz"))) == 6
    assert about(tmp_path) == []


def test_the_demo_of_traccc_without_pyacts_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.acts, "is_installed", lambda: False)
    settings = DemoSettings(folder=tmp_path / "demo", workload="traccc")
    with pytest.raises(MissingComponent, match=r"needs pyacts; pip install 'exatrkx-hpc\[local,acts\]'"):
        demo.run_demo(settings, tell=untold, show=lambda tally: None)
    assert not (tmp_path / "demo").exists()


def test_the_demos_farm_is_its_own_whatever_the_folder_says(tmp_path, monkeypatch):
    (tmp_path / "farm.toml").write_text('site = "generic"\n[server]\nengine = "podman"\nimage = "x"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXATRKX_HPC_SERVER_MODEL_REPOSITORY", str(tmp_path / "mine"))
    what = _farm(DemoSettings(folder=tmp_path / "demo"))
    assert (what.cluster.scheduler, what.server.engine) == ("local", "none")
    assert what.server.model_repository == str(tmp_path / "demo" / "run" / "model_repository")
