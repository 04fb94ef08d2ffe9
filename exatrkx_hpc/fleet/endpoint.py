"""The file in which a monitor publishes its endpoint to other commands."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir, RunDir


class EndpointRecord(BaseModel):
    """The endpoint of a job; each address is `host:port`, `prometheus` is empty without Prometheus.

    `access` is `token` or `open`; `certificate` is the file with the certificate of an endpoint with TLS, which clients
    pin. `metrics` maps the name of each ready server to its metrics address, `instances` to the ID that its Triton
    reports. `updated` is in seconds since the epoch.
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
    monitor_pid: int
    updated: float


def write_endpoint(run_dir: RunDir, record: EndpointRecord) -> None:
    """Write the endpoint file into the run directory, and point `latest` to that run directory."""
    write_whole(run_dir.endpoint, record.model_dump_json(indent=2) + "\n")
    point_latest(run_dir)


def point_latest(run_dir: RunDir) -> None:
    """Point the link `latest` in the run root to the run directory."""
    latest = run_dir.farm.latest
    aside = latest.with_name(f".{latest.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(run_dir.job)
    aside.replace(latest)


def remove_endpoint(run_dir: RunDir) -> None:
    """Remove the endpoint file: the endpoint no longer answers."""
    run_dir.endpoint.unlink(missing_ok=True)


def read_endpoint(run_dir: RunDir) -> EndpointRecord | None:
    """Return the endpoint record of the run directory; None if it is missing or invalid."""
    try:
        record = EndpointRecord.model_validate_json(run_dir.endpoint.read_bytes())
    except (OSError, ValidationError):
        return None
    return record


def running_endpoint(farm: FarmDir, job: str = LATEST) -> EndpointRecord:
    """Return the endpoint of `job`, by default of the last monitored job; raises EndpointError if there is none."""
    record = read_endpoint(farm.job(job))
    if record is None:
        which = "no monitor is running" if job == LATEST else f"no monitor is running for job {job}"
        raise EndpointError(f"{which} below {farm}; start 'exatrkx-hpc monitor JOBID', or set --server HOST:PORT")
    return record
