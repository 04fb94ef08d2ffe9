"""The metrics store: Prometheus with the members as targets. Rendering is pure; `MetricsStore` checks and runs it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.http import cluster_session
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ports import chosen_port, port_trouble, public_host
from exatrkx_hpc.base.process import Child, find_program, run, spawn
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.endpoint import last_ports
from exatrkx_hpc.fleet.events import MetricsStoreMissing
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.fleet.orphans import end_orphan
from exatrkx_hpc.launch.run_dir import RunDir

_REMEDY = "install the package 'prometheus', or set monitor.prometheus to false"
_OTHER_PORT = "choose another with monitor.prometheus_port, or 0 for any free one"


def render_config(*, scrape_interval: int) -> str:
    """Return the text of prometheus.yml; `scrape_interval` is in seconds."""
    return render(
        "prometheus/prometheus.yml.j2",
        scrape_interval=scrape_interval,
        scrape_timeout=min(scrape_interval, 10),
    )


def render_targets(members: Iterable[Member]) -> str:
    """Return the text of targets.json: each member's metrics address, labelled with job, node and server."""
    groups = [
        {
            "targets": [member.metrics],
            "labels": {"job": member.record.job, "node": member.record.node, "server": member.name},
        }
        for member in members
    ]
    return json.dumps(groups, indent=2) + "\n"


def metrics_store(settings: MonitorSection, folder: Path, *, host: str, tell: Tell = untold) -> MetricsStore | None:
    """Return the metrics store for these settings, not yet started; None if disabled, or missing (`tell` gets news)."""
    if not settings.prometheus:
        return None
    last = last_ports(RunDir(folder.parent)).get("prometheus", 0)
    try:
        return MetricsStore(
            folder,
            host=host,
            port=chosen_port(host, settings.prometheus_port, "prometheus", tell, last=last),
            scrape_interval=settings.scrape_interval,
        )
    except MissingComponent as error:
        tell(MetricsStoreMissing(reason=str(error).partition("; ")[0]))
        return None


class MetricsStore:
    """One Prometheus with its files in its own folder."""

    def __init__(self, folder: Path, *, host: str, port: int, scrape_interval: int) -> None:
        """Prepare Prometheus; raises MissingComponent if prometheus or promtool is not on this machine."""
        self._folder = folder
        self._host, self._port = host, port
        self._bound = f"{host}:{port}"
        self._scrape_interval = scrape_interval
        self._program = find_program("prometheus", remedy=_REMEDY)
        self._promtool = find_program("promtool", remedy=_REMEDY)
        self._child: Child | None = None

    @property
    def address(self) -> str:
        """The address of its web page, `host:port`; the host is this machine's name if it listens on every address."""
        return f"{public_host(self._host)}:{self._port}"

    def start(self, members: Iterable[Member]) -> None:
        """Start Prometheus for these members and wait until it is ready; raises EndpointError if it fails."""
        self.stop()
        end_orphan(self._folder / "prometheus.pid", program="prometheus", mark=str(self._folder))
        if trouble := port_trouble(self._host, self._port):
            raise EndpointError(f"Prometheus cannot listen on {self._bound} ({trouble}); {_OTHER_PORT}")
        shutil.copytree(asset("prometheus/rules"), self._folder / "rules", dirs_exist_ok=True)
        self.update(members)
        config = self._folder / "prometheus.yml"
        write_whole(config, render_config(scrape_interval=self._scrape_interval))
        done = run([self._promtool, "check", "config", str(config)], timeout=30)
        if done.returncode:
            raise EndpointError(f"Prometheus rejects its configuration: {done.complaint}")
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._bound}",
        ]
        self._child = spawn([self._program, *arguments], log=self._folder / "prometheus.log")
        write_whole(self._folder / "prometheus.pid", f"{self._child.pid}\n")
        self._wait_until_ready()

    def update(self, members: Iterable[Member]) -> None:
        """Write these members as the targets; Prometheus reads the changed file by itself."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / "targets.json", render_targets(members))

    def alive(self) -> bool:
        """Return whether Prometheus runs."""
        child = self._child  # another thread may stop it
        return child is not None and child.returncode() is None

    def stop(self) -> None:
        """Stop Prometheus after it has written its data; kill it after 10 s."""
        child, self._child = self._child, None
        if child is not None:
            child.stop(grace=10)

    def _wait_until_ready(self, deadline: float = 900.0) -> None:
        """Wait until Prometheus answers or ends. It first replays its log of an earlier start, which takes minutes."""
        import requests  # a sixth of a command's start, and most commands never wait here

        until = time.monotonic() + deadline
        with cluster_session() as session:
            while time.monotonic() < until and self.alive():
                try:
                    if session.get(f"http://{self._bound}/-/ready", timeout=1).ok:
                        return
                except requests.RequestException:
                    pass
                time.sleep(0.1)
        raise EndpointError(f"Prometheus did not start on {self._bound}; see {self._folder / 'prometheus.log'}")
