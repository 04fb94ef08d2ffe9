"""The status of a job: its state, its servers and its endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.readable import duration
from exatrkx_hpc.fleet.endings import explained, of_former_run, of_lost_node
from exatrkx_hpc.fleet.endpoint import EndpointHealth, health_of, read_endpoint
from exatrkx_hpc.fleet.events import JobProgress
from exatrkx_hpc.fleet.members.outliers import read_ejected
from exatrkx_hpc.fleet.members.probe import probe
from exatrkx_hpc.fleet.members.reconcile import Member, ready_members, reconcile
from exatrkx_hpc.fleet.members.record import ServerRecord, Unreadable, read_records
from exatrkx_hpc.fleet.readiness import ReadyWait
from exatrkx_hpc.fleet.reasons import with_remedy
from exatrkx_hpc.launch.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of a job and its servers at one moment; `endpoint` is empty if nothing of the job answers there.

    `health` says whether a monitor keeps the endpoint; None without an endpoint file.
    """

    info: JobInfo
    servers: tuple[Member, ...]
    endpoint: str
    health: EndpointHealth | None = None

    @property
    def note(self) -> str:
        """The reason of the job's state, and that of its endpoint without a monitor."""
        lost = "" if self.health is None or self.info.state.over else self.health.note
        return "; ".join(filter(None, (self.info.reason, lost)))

    @property
    def ready(self) -> int:
        """The number of ready servers."""
        return len(ready_members(self.servers))

    def as_dict(self) -> dict[str, object]:
        """Return the status as JSON values."""
        return {
            "job": self.info.id,
            "cluster": self.info.cluster,
            "state": self.info.state.value,
            "reason": self.info.reason,
            "nodes": list(self.info.nodes),
            "time_left_s": None if self.info.time_left is None else round(self.info.time_left),
            "ready": self.ready,
            "endpoint": self.endpoint,
            "monitor": None if self.health is None else self.health.as_dict(),
            "servers": [
                {**member.record.model_dump(), "state": member.state, "note": member.note} for member in self.servers
            ],
        }


def job_status(info: JobInfo, run_dir: RunDir, *, timeout: float) -> JobStatus:
    """Query the job of `run_dir` once; each server has `timeout` seconds to answer."""
    now, servers = observe(info, run_dir, timeout=timeout)
    endpoint = read_endpoint(run_dir)
    health = health_of(endpoint) if endpoint is not None else None
    address = endpoint.grpc if endpoint is not None and health is not None and health.usable else ""
    ejected = read_ejected(run_dir) if address else {}
    servers = tuple(_with_age(_with_fault(member, ejected), time.time()) for member in servers)
    return JobStatus(info=now, servers=servers, endpoint=address, health=health)


def wait_until_ready(query: Callable[[], JobStatus], *, wait: ReadyWait, tell: Tell) -> JobStatus:
    """Wait until enough servers are ready and return the status; `tell` gets each change.

    Raises EndpointError if the job ends before, or when `wait` is over.
    """
    said = ""
    while True:
        now = query()
        job, state = now.info.id, now.info.state
        if now.ready < wait.wanted:
            news = JobProgress(job=job, state=state, ready=now.ready, wanted=wait.wanted, reason=now.info.reason)
            if str(news) != said:
                tell(news)
                said = str(news)
            if state.over:
                why = now.info.reason or f"see 'exatrkx-hpc logs {job}'"
                raise EndpointError(f"job {job} is {state.value} before its servers were ready; {why}")
        try:
            if wait.over(now.info, now.servers):
                return now
        except EndpointError as error:
            raise EndpointError(f"{error}; the job continues, 'exatrkx-hpc logs {job}' shows its servers") from error
        time.sleep(1.0)


def observe(
    info: JobInfo,
    run_dir: RunDir,
    *,
    timeout: float,
    previous: Iterable[Member] = (),
    tolerance: int = 1,
    ask: Callable[[Iterable[ServerRecord], float], dict[str, bool]] = probe,
    judge: Callable[[tuple[Member, ...]], tuple[Member, ...]] = tuple,
    unreadable: Unreadable = lambda path, why: None,
) -> tuple[JobInfo, tuple[Member, ...]]:
    """Return the job with its reason explained, and its members; `reconcile` explains `previous` and `tolerance`.

    `ask` probes the servers, each of which has `timeout` seconds to answer. A requeued job that is pending has only
    servers of its former run. `judge` changes the states of the members by their answers. `unreadable` is called for a
    record that cannot be read now; the server's last record in `previous` takes its place.
    """
    previous = tuple(previous)
    records = read_records(run_dir, (member.record for member in previous), unreadable=unreadable)
    serving = [record for record in records if record.state == "starting"] if not info.state.over else []
    ready = ask(serving, timeout)
    members = reconcile(job=info.state, records=records, ready=ready, previous=previous, tolerance=tolerance)
    return explained(info, run_dir, records), tuple(_told(member, info) for member in judge(members))


def _told(member: Member, info: JobInfo) -> Member:
    """Keep the note of an ended server when its job ends; a server of a former run or a lost node is gone."""
    if member.record.state == "gone":
        note = with_remedy(member.record.note)
        member = replace(member, note=f"{note}; {member.note}" if info.state.over else note)
    if info.state.over:
        return member
    if member.state != "ready" and of_former_run(member.record, info):
        return replace(member, state="gone", note="from the previous run; its job waits to restart")
    if member.state != "ready" and member.record.state != "gone" and of_lost_node(member.record, info):
        return replace(member, state="gone", note="its node has left the job")
    return member


def _with_fault(member: Member, ejected: Mapping[tuple[str, int], str]) -> Member:
    """Return the member as its job's monitor sees it: a server that answers may be ejected."""
    fault = ejected.get((member.name, member.record.starts))
    return replace(member, state="ejected", note=fault) if fault and member.state == "ready" else member


def _with_age(member: Member, now: float) -> Member:
    """Add to a starting server's note the age of its record: a single probe cannot distinguish slow from dead."""
    if member.state != "starting":
        return member
    age = duration(max(0, round(now - member.record.updated)))
    return replace(member, note=f"{member.note} {age} ago, no answer yet")
