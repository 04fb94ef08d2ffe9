"""The records that servers write about themselves, one JSON file each in the run directory."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.launch.run_dir import RunDir


class ServerRecord(BaseModel):
    """The state of a server as its own script writes it.

    `instance` is the ID that its Triton reports. `starts` counts its starts, and is set back to 1 after a run of more
    than ten minutes. `updated` is in seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str
    instance: str
    job: str
    node: str
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    gpus: str
    pid: int
    starts: int
    state: Literal["starting", "draining", "gone"]
    note: str
    updated: int


def read_records(run_dir: RunDir) -> tuple[ServerRecord, ...]:
    """Return the records of a run directory, sorted by file name; a file that is not a record is skipped.

    Servers write a record aside and rename it, so a skipped file is never a partial record.
    """
    records = []
    for path in sorted(run_dir.records.glob("*.json")):
        try:
            records.append(ServerRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return tuple(records)
