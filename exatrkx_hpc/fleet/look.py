"""One look at a job, for `status`: its state, its servers as they answer now, and its endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.fleet.endpoint_file import read_endpoint
from exatrkx_hpc.fleet.health import probe
from exatrkx_hpc.fleet.membership import Member, ready_members, reconcile
from exatrkx_hpc.fleet.registry import read_records
from exatrkx_hpc.launch.scheduler import JobInfo


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a job is at one moment; `endpoint` is empty when no monitor keeps one."""

    info: JobInfo
    servers: tuple[Member, ...]
    endpoint: str

    @property
    def ready(self) -> int:
        """How many servers answer that they are ready."""
        return len(ready_members(self.servers))

    def as_dict(self) -> dict[str, object]:
        """Return it as what JSON can say."""
        return {
            "job": self.info.id,
            "state": self.info.state.value,
            "reason": self.info.reason,
            "nodes": list(self.info.nodes),
            "time_left_s": self.info.time_left,
            "ready": self.ready,
            "endpoint": self.endpoint,
            "servers": [
                {**member.record.model_dump(), "state": member.state, "note": member.note} for member in self.servers
            ],
        }


def look(info: JobInfo, run_dir: Path, *, timeout: float) -> Look:
    """Look once at the job of `run_dir`; each server has `timeout` seconds to answer."""
    records = read_records(run_dir)
    serving = [record for record in records if record.state == "starting"] if not info.state.over else []
    members = reconcile(job=info.state, records=records, ready=probe(serving, timeout), previous=(), tolerance=1)
    endpoint = read_endpoint(run_dir)
    return Look(info=info, servers=members, endpoint=endpoint.grpc if endpoint else "")
