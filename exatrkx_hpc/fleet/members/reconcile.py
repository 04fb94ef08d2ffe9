"""Compute the members from records, probes and the job's state. No side effects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.fleet.members.record import ServerRecord

MemberState = Literal["starting", "ready", "ejected", "draining", "gone"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A server as the monitor sees it; `missed` counts the failed probes since the last answer."""

    record: ServerRecord
    state: MemberState
    note: str
    missed: int = 0

    @property
    def name(self) -> str:
        """The server's name, unique in its job."""
        return self.record.server

    @property
    def grpc(self) -> str:
        """The server's gRPC address, `host:port`."""
        return f"{self.record.address}:{self.record.grpc_port}"

    @property
    def http(self) -> str:
        """The server's HTTP address, `host:port`."""
        return f"{self.record.address}:{self.record.http_port}"

    @property
    def metrics(self) -> str:
        """The server's metrics address, `host:port`."""
        return f"{self.record.address}:{self.record.metrics_port}"


def reconcile(
    *,
    job: JobState,
    records: Iterable[ServerRecord],
    ready: Mapping[str, bool],
    previous: Iterable[Member],
    tolerance: int,
) -> tuple[Member, ...]:
    """Return the members from the records, the probes in `ready`, the job's state and the previous members.

    The end of the job, and a record with the state `draining` or `gone`, take effect at once. A ready server may miss
    up to `tolerance` - 1 probes in a row before it is gone. A server that answers again is ready again. A server
    that is missing in `ready` could not be probed: it stays as it was.
    """
    before = {member.name: member for member in previous}
    return tuple(
        _judge(record, job, ready.get(record.server), before.get(record.server), tolerance) for record in records
    )


def _judge(record: ServerRecord, job: JobState, ready: bool | None, before: Member | None, tolerance: int) -> Member:
    if job.over:
        return Member(record=record, state="gone", note=f"its job is {job.value}")
    if record.state in ("draining", "gone"):
        return Member(record=record, state=record.state, note=record.note)
    if ready:
        return Member(record=record, state="ready", note="answers")
    same_start = before is not None and before.record.starts == record.starts
    if before is None or not same_start or before.state == "starting":
        return Member(record=record, state="starting", note=record.note)
    return replace(before, record=record) if ready is None else _silent(record, before, tolerance)


def _silent(record: ServerRecord, before: Member, tolerance: int) -> Member:
    missed = before.missed + 1
    if before.state == "ready" and missed < tolerance:
        return Member(record=record, state="ready", note=before.note, missed=missed)
    return Member(record=record, state="gone", note="does not answer", missed=missed)


def ready_members(members: Iterable[Member]) -> tuple[Member, ...]:
    """Return the ready members, which receive requests."""
    return tuple(member for member in members if member.state == "ready")


def changes(before: Iterable[Member], after: Iterable[Member]) -> tuple[Member, ...]:
    """Return the members of `after` that are new, or that have another state or start than in `before`."""
    known = {member.name: (member.state, member.record.starts) for member in before}
    return tuple(member for member in after if known.get(member.name) != (member.state, member.record.starts))
