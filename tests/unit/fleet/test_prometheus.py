"""The metrics store: configuration checked by promtool, and a running Prometheus that follows the members."""

from __future__ import annotations

import json

import pytest
import requests
from balancers import member
from hostile_names import HOSTILE_FOLDERS
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.base.process import run
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.sidecars.prometheus import MetricsStore, metrics_store, render_config, render_targets
from exatrkx_hpc.launch.run_dir import RunDir


def test_the_configuration_is_as_agreed(golden):
    golden("prometheus.yml", render_config(scrape_interval=5))


def test_targets_are_labelled_by_job_node_and_server():
    groups = json.loads(render_targets([member("nid001-0"), member("nid002-0", "10.0.0.2", metrics_port=8012)]))
    assert groups == [
        {"targets": ["10.0.0.1:8002"], "labels": {"job": "7", "node": "nid001", "server": "nid001-0"}},
        {"targets": ["10.0.0.2:8012"], "labels": {"job": "7", "node": "nid002", "server": "nid002-0"}},
    ]


def test_promtool_accepts_the_rules(prometheus):
    done = run(["promtool", "check", "rules", *map(str, asset("prometheus/rules").glob("*.yml"))])
    assert done.returncode == 0, done.complaint


def test_the_rules_say_what_they_should(prometheus, tmp_path):
    """A server that is down for half a minute raises the alert, and a fleet's mean weighs by requests."""
    series = [
        {"series": 'up{job="7",node="n1",server="n1-0"}', "values": "1 1 0 0 0 0 0"},
        {"series": 'nv_inference_request_success{model="m",server="n1-0"}', "values": "0+30x6"},
        {"series": 'nv_inference_request_success{model="m",server="n2-0"}', "values": "0+10x6"},
        {"series": 'nv_inference_request_duration_us{model="m",server="n1-0"}', "values": "0+30000x6"},
        {"series": 'nv_inference_request_duration_us{model="m",server="n2-0"}', "values": "0+50000x6"},
    ]
    mean = "farm:request_seconds:mean1m"
    tests = {
        "rule_files": [str(path) for path in asset("prometheus/rules").glob("*.yml")],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": mean,
                        "eval_time": "75s",
                        "exp_samples": [
                            {"labels": '{__name__="farm:request_seconds:mean1m",model="m"}', "value": 0.002}
                        ],
                    }
                ],
                "alert_rule_test": [
                    {
                        "alertname": "ServerDown",
                        "eval_time": "75s",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "warning", "job": "7", "node": "n1", "server": "n1-0"},
                                "exp_annotations": {"summary": "Server n1-0 on n1 does not answer Prometheus"},
                            }
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "rules-test.yml"
    path.write_text(json.dumps(tests))  # JSON is YAML
    done = run(["promtool", "test", "rules", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def store(prometheus, tmp_path):
    """Start a store in a folder; it is stopped at the end."""
    running = []

    def _store(folder=tmp_path / "prometheus", port=0) -> MetricsStore:
        made = MetricsStore(folder, host="127.0.0.1", port=port or free_port("127.0.0.1"), scrape_interval=1)
        running.append(made)
        return made

    yield _store
    for made in running:
        made.stop()


def scraped(store: MetricsStore) -> set[str]:
    with requests.get(f"http://{store.address}/api/v1/targets?state=active", timeout=5) as answer:
        return {target["labels"]["server"] for target in answer.json()["data"]["activeTargets"]}


def test_targets_follow_the_members(store):
    running = store()
    running.start([member("n1-0", "127.0.6.1")])
    until(lambda: scraped(running) == {"n1-0"}, what="the first target")
    running.update([member("n1-0", "127.0.6.1"), member("n2-0", "127.0.6.2")])
    until(lambda: scraped(running) == {"n1-0", "n2-0"}, what="both targets")
    running.update([])
    until(lambda: scraped(running) == set(), what="no target")


def test_no_proxy_is_asked_whether_it_is_ready(store, web_proxy):
    running = store()
    running.start([])
    assert running.alive()


@pytest.mark.parametrize("name", HOSTILE_FOLDERS[:3])
def test_any_folder_name_will_do(store, tmp_path, name):
    running = store(folder=tmp_path / name)
    running.start([member("n1-0", "127.0.6.1")])
    until(lambda: scraped(running) == {"n1-0"}, what="the target")


def test_a_port_in_use_is_one_line_with_the_next_step(store, tmp_path):
    first = store()
    first.start([])
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(EndpointError, match=r"cannot listen on .*prometheus_port"):
        store(folder=tmp_path / "second", port=port).start([])


def test_any_port_is_that_of_the_last_endpoint(prometheus, tmp_path):
    run_dir, port = RunDir(tmp_path / "7"), free_port("127.0.0.1")
    run_dir.path.mkdir()
    facts = {"job": "7", "grpc": "h:1", "http": "h:2", "prometheus": f"h:{port}", "metrics": {}, "ready": 0}
    run_dir.last_endpoint.write_text(json.dumps({**facts, "monitor_pid": 1, "updated": 0}))
    store = metrics_store(MonitorSection(prometheus_port=0), run_dir.prometheus, host="127.0.0.1")
    assert store is not None and store.address == f"127.0.0.1:{port}"
