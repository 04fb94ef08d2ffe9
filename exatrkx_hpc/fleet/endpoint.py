"""The file in which a monitor publishes its endpoint to other commands, and whether that endpoint is still kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.http import cluster_session
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.ownership import ENDPOINT_HEADER, parse_endpoint_id
from exatrkx_hpc.base.process_id import ProcessId, boot_id, host_name
from exatrkx_hpc.base.readable import duration, moment
from exatrkx_hpc.fleet.events import MonitorAbsent
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir, RunDir

#: A monitor on another machine counts as ended after so many missed heartbeats, and after so many seconds at least: a
#: look may wait for Slurm or a slow file system, and two clocks may differ.
_MISSED: Final = 3
_LEAST_SILENCE: Final = 30.0
#: Seconds that a balancer has to say whose it is.
_DEADLINE: Final = 3.0


class EndpointRecord(BaseModel):
    """The endpoint of a job; each address is `host:port`, `prometheus` is empty without Prometheus.

    `metrics` maps the name of each ready server to its metrics address, `instances` to the ID that its Triton reports.
    `access` is `token` or `open`; `certificate` is the file with the certificate of an endpoint with TLS, which clients
    pin. `identity` is what the balancer says of itself in each answer, `FARM/JOB/INSTANCE`. `balancer_pid` and
    `monitor_pid` are processes of `host`, whose boot is `boot`; the monitor began at `monitor_started` (ticks since
    boot). The monitor renews `heartbeat` each `interval` seconds. `heartbeat` and `updated`, the last change, are in
    seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    grpc: str
    http: str
    prometheus: str
    metrics: dict[str, str]
    instances: dict[str, str] = {}
    access: str = "open"
    certificate: str = ""
    ready: int
    identity: str = ""
    host: str = ""
    boot: str = ""
    balancer_pid: int = 0
    monitor_pid: int
    monitor_started: int = 0
    interval: float = 5.0
    heartbeat: float = 0.0
    updated: float

    @property
    def heard(self) -> float:
        """When the monitor was last heard of, in seconds since the epoch."""
        return max(self.heartbeat, self.updated)

    def is_of(self, pid: int) -> bool:
        """Return whether its monitor is the process `pid` of this machine."""
        return (self.host, self.boot, self.monitor_pid) == (host_name(), boot_id(), pid)

    def has_monitor(self, now: float) -> bool:
        """Return whether its monitor lives: on this machine, its process; elsewhere, its heartbeat."""
        monitor = ProcessId(host=self.host, boot=self.boot, pid=self.monitor_pid, started=self.monitor_started)
        if monitor.here:
            return monitor.runs
        return now - self.heard <= max(_LEAST_SILENCE, _MISSED * self.interval)


def write_endpoint(run_dir: RunDir, record: EndpointRecord) -> None:
    """Write the endpoint file into the run directory."""
    write_whole(run_dir.endpoint, record.model_dump_json(indent=2) + "\n")


def point_latest(run_dir: RunDir) -> None:
    """Point the link `latest` in the run root to the run directory; raises OSError if `latest` is no link."""
    latest = run_dir.farm.latest
    aside = latest.with_name(f".{latest.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(run_dir.job)
    try:
        aside.replace(latest)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def remove_endpoint(run_dir: RunDir) -> None:
    """Remove the endpoint file, but keep its ports: the endpoint no longer answers.

    The file of another monitor that lives stays.
    """
    record = read_endpoint(run_dir)
    if record is None or record.is_of(os.getpid()) or not record.has_monitor(time.time()):
        with contextlib.suppress(FileNotFoundError):
            run_dir.endpoint.replace(run_dir.last_endpoint)


def read_endpoint(run_dir: RunDir) -> EndpointRecord | None:
    """Return the endpoint record of the run directory; None if it is missing or invalid."""
    return _read(run_dir.endpoint)


def _read(path: Path) -> EndpointRecord | None:
    try:
        return EndpointRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def last_ports(run_dir: RunDir) -> dict[str, int]:
    """Return the ports of the job's last endpoint, or else of the farm's, by part: grpc, http, prometheus.

    The same ports at the next start spare clients a new address.
    """
    latest = run_dir.farm.job(LATEST)
    found = map(_read, (run_dir.endpoint, run_dir.last_endpoint, latest.endpoint, latest.last_endpoint))
    last = next((record for record in found if record is not None), None)
    addresses = {"grpc": last.grpc, "http": last.http, "prometheus": last.prometheus} if last is not None else {}
    ports = {part: address.rpartition(":")[2] for part, address in addresses.items()}
    return {part: int(port) for part, port in ports.items() if port.isdecimal()}


def identity_at(http: str, certificate: str = "") -> str:
    """Return what the balancer at an HTTP address says of itself, `FARM/JOB/INSTANCE`; empty if none answers.

    With TLS, `certificate` is the file with the certificate to trust.
    """
    scheme = "https" if certificate else "http"
    try:
        with cluster_session(certificate) as session:
            answer = session.get(f"{scheme}://{http}/{ENDPOINT_HEADER}", timeout=_DEADLINE)
            return str(answer.headers.get(ENDPOINT_HEADER, ""))
    except (OSError, ValueError):
        return ""


def triton_version(http: str, certificate: str = "", *, headers: Mapping[str, str]) -> str:
    """Return the version of Triton that a server behind an HTTP address reports, or ''; see `identity_at`.

    `headers` have the token.
    """
    scheme = "https" if certificate else "http"
    try:
        with cluster_session(certificate) as session:
            answer = session.get(f"{scheme}://{http}/v2", headers=headers, timeout=_DEADLINE)
            return str(answer.json()["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True, kw_only=True)
class EndpointHealth:
    """Whether an endpoint is kept: its monitor lives, or how long it was silent, and whether its balancer answers.

    `silent` is in seconds. `said` is what answers at its address says of itself; it is not asked while a monitor lives.
    """

    record: EndpointRecord
    monitor: bool
    silent: float = 0.0
    said: str = ""

    @property
    def usable(self) -> bool:
        """Whether requests reach this job's servers."""
        ours = parse_endpoint_id(self.record.identity)
        return self.monitor or (ours is not None and ours.same_job(parse_endpoint_id(self.said)))

    def as_dict(self) -> dict[str, object]:
        """Return as JSON values whether a monitor runs, where, how long it was silent, and what to know of it."""
        return {
            "runs": self.monitor,
            "host": self.record.host,
            "pid": self.record.monitor_pid,
            "silent_s": round(self.silent, 1),
            "endpoint_answers": self.usable,
            "note": self.note,
        }

    @property
    def note(self) -> str:
        """What a person should know of it; empty while a monitor lives."""
        if self.monitor:
            return ""
        since = f"no monitor since {moment(self.record.heard)}, {_age(self.silent)}"
        if self.usable:
            return f"{since}, the balancer still answers; start 'exatrkx-hpc monitor {self.record.job}'"
        if self.said:
            return f"{since}, and {self.record.grpc} is now the endpoint of {self.said}"
        return f"{since}, and nothing of this job answers at {self.record.grpc}"


def _age(seconds: float) -> str:
    days = int(seconds // 86400)
    return f"{days} days ago" if days > 1 else f"{duration(round(seconds))} ago"


def health_of(record: EndpointRecord) -> EndpointHealth:
    """Return whether an endpoint is kept; ask its balancer, up to 3 s, if its monitor is silent."""
    now = time.time()
    if record.has_monitor(now):
        return EndpointHealth(record=record, monitor=True)
    return EndpointHealth(
        record=record,
        monitor=False,
        silent=max(0.0, now - record.heard),
        said=identity_at(record.http, record.certificate),
    )


def running_endpoint(farm: FarmDir, job: str = LATEST, *, tell: Tell = untold) -> EndpointRecord:
    """Return the endpoint of `job`, by default of the last monitored job.

    If its monitor is gone, but its balancer answers, `tell` gets MonitorAbsent. Raises EndpointError if there is no
    endpoint, or one whose monitor is silent, and whose balancer does not answer or is another job's.
    """
    record = read_endpoint(farm.job(job))
    if record is None:
        which = "no monitor is running" if job == LATEST else f"no monitor is running for job {job}"
        raise EndpointError(f"{which} below {farm}; start 'exatrkx-hpc monitor JOBID', or set --server HOST:PORT")
    health = health_of(record)
    if not health.usable:
        raise EndpointError(f"job {record.job}: {health.note}; start 'exatrkx-hpc monitor {record.job}' again")
    if not health.monitor:
        tell(MonitorAbsent(job=record.job, endpoint=record.grpc, seconds=health.silent))
    return record
