"""The file in which a monitor publishes its endpoint to other commands."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir, RunDir


class EndpointRecord(BaseModel):
    """Where the endpoint of a job is; each address is `host:port`, `prometheus` is empty when there is none.

    `metrics` is where each ready server gives its metrics, `instances` the name of its process, by the servers' names.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    grpc: str
    http: str
    prometheus: str
    metrics: dict[str, str]
    instances: dict[str, str] = {}
    ready: int
    monitor_pid: int
    updated: float


def write_endpoint(run_dir: RunDir, record: EndpointRecord) -> None:
    """Write the endpoint's file in the run directory and let `latest` beside the run directory point to it."""
    write_whole(run_dir.endpoint, record.model_dump_json(indent=2) + "\n")
    point_latest(run_dir)


def point_latest(run_dir: RunDir) -> None:
    """Let `latest` beside the run directory point to it."""
    latest = run_dir.farm.latest
    aside = latest.with_name(f".{latest.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(run_dir.job)
    aside.replace(latest)


def remove_endpoint(run_dir: RunDir) -> None:
    """Take the endpoint's file away: nothing answers there any more."""
    run_dir.endpoint.unlink(missing_ok=True)


def read_endpoint(run_dir: RunDir) -> EndpointRecord | None:
    """Return what the run directory says of its endpoint, or None when it has none."""
    try:
        record = EndpointRecord.model_validate_json(run_dir.endpoint.read_bytes())
    except (OSError, ValidationError):
        return None
    return record


def running_endpoint(farm: FarmDir, job: str = LATEST) -> EndpointRecord:
    """Return the endpoint of `job`, or of the job watched last; raises EndpointError when there is none."""
    record = read_endpoint(farm.job(job))
    if record is None:
        which = "no monitor is running" if job == LATEST else f"no monitor is running for job {job}"
        raise EndpointError(f"{which} below {farm}; start 'exatrkx-hpc monitor JOBID', or set --server HOST:PORT")
    return record
