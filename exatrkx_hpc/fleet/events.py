"""What happens to a farm, as news: to its job, its servers, its balancer and what runs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.fleet.members.reconcile import MemberState

#: States of a job that ended as somebody wanted it to.
_WANTED = (JobState.COMPLETED, JobState.CANCELLED)
#: What a farm is like on a machine that has no Prometheus, as login nodes have none.
WITHOUT_PROMETHEUS = "the endpoint goes without it, and 'exatrkx-hpc metrics' asks the servers themselves"


@dataclass(frozen=True, kw_only=True)
class MemberChanged(News):
    """A server is new, or has another state or start; `ready` servers receive requests now."""

    code: ClassVar[str] = "member-changed"
    server: str
    node: str
    state: MemberState
    note: str
    ready: int

    @property
    def level(self) -> Level:
        """A server that is gone deserves a look; so far nobody says whether it was to go."""
        return Level.WARNING if self.state == "gone" else Level.INFO

    def __str__(self) -> str:
        """Return the line of today's monitor."""
        return f"{self.server}: {self.state} ({self.note}), {self.ready} ready"


@dataclass(frozen=True, kw_only=True)
class JobChanged(News):
    """The job has another state or another reason for it; `back` says that the scheduler answers again."""

    code: ClassVar[str] = "job-changed"
    state: JobState
    reason: str = ""
    back: bool = False

    @property
    def level(self) -> Level:
        """An end that nobody wanted is an error."""
        return Level.ERROR if self.state.over and self.state not in _WANTED else Level.INFO

    def __str__(self) -> str:
        """Return the state, and why it is so."""
        back = ", Slurm answers again" if self.back else ""
        return f"job: {self.state.value}{back}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class SchedulerSilent(News):
    """The scheduler does not answer; the endpoint goes on as it was."""

    code: ClassVar[str] = "scheduler-silent"
    #: It may come back.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return what is known of the job: nothing."""
        return f"job: state unknown, the endpoint keeps running ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class JobProgress(News):
    """How far a job is from `wanted` ready servers, as long as somebody waits for them."""

    code: ClassVar[str] = "job-progress"
    state: JobState
    ready: int
    wanted: int
    reason: str = ""

    def __str__(self) -> str:
        """Return the job, its state, and its servers."""
        servers = f"{self.ready} of {self.wanted} servers ready"
        return f"job {self.job}: {self.state.value}, {servers} {self.reason}".rstrip()


@dataclass(frozen=True, kw_only=True)
class EndpointOpened(News):
    """The balancer listens; `grpc` and `http` are the addresses that clients use."""

    code: ClassVar[str] = "endpoint-opened"
    grpc: str
    http: str

    def __str__(self) -> str:
        """Return the address that most clients use."""
        return f"endpoint: {self.grpc}"


@dataclass(frozen=True, kw_only=True)
class BalancerReloaded(News):
    """The balancer spreads new requests over these servers."""

    code: ClassVar[str] = "balancer-reloaded"
    #: A person has read of the servers already.
    usual: ClassVar[Level] = Level.DEBUG
    servers: tuple[str, ...]

    def __str__(self) -> str:
        """Return the servers' names."""
        return f"balancer: {len(self.servers)} server(s){': ' + ', '.join(self.servers) if self.servers else ''}"


@dataclass(frozen=True, kw_only=True)
class BalancerEnded(News):
    """The balancer has ended though nobody stopped it; it is started again."""

    code: ClassVar[str] = "balancer-ended"
    #: Requests in flight were lost.
    usual: ClassVar[Level] = Level.WARNING
    balancer: str
    endpoint: str

    def __str__(self) -> str:
        """Return what is done about it."""
        return f"balancer: {self.balancer} has ended; starts again on {self.endpoint}"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreStarted(News):
    """Prometheus runs at `address`."""

    code: ClassVar[str] = "prometheus-started"
    address: str

    def __str__(self) -> str:
        """Return its page."""
        return f"prometheus: http://{self.address}"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreMissing(News):
    """There is no Prometheus on this machine."""

    code: ClassVar[str] = "prometheus-missing"
    #: There is no history, and there are no alerts.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return what is missing, and what does without it."""
        return f"prometheus: {self.reason}; {WITHOUT_PROMETHEUS}"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreEnded(News):
    """Prometheus has ended though nobody stopped it; it is started again."""

    code: ClassVar[str] = "prometheus-ended"
    #: The endpoint serves on.
    usual: ClassVar[Level] = Level.WARNING

    def __str__(self) -> str:
        """Return what is done about it."""
        return "prometheus: it has ended; starts again"


@dataclass(frozen=True, kw_only=True)
class NotApplied(News):
    """What changed could not be applied to a part, `balancer` or `prometheus`; it is tried again at each look."""

    code: ClassVar[str] = "part-not-applied"
    #: What was applied last stays.
    usual: ClassVar[Level] = Level.WARNING
    part: str
    reason: str

    def __str__(self) -> str:
        """Return the part and why."""
        return f"{self.part}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MonitorFailed(News):
    """The monitor has ended by an error, and the endpoint with it."""

    code: ClassVar[str] = "monitor-failed"
    #: Nothing answers any more.
    usual: ClassVar[Level] = Level.ERROR
    reason: str

    def __str__(self) -> str:
        """Return the error."""
        return f"monitor ended: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MonitorStopped(News):
    """The monitor was stopped; the servers of its job go on without an endpoint."""

    code: ClassVar[str] = "monitor-stopped"

    def __str__(self) -> str:
        """Return how the servers are ended."""
        return (
            f"monitor stopped; the servers of job {self.job} keep running, stop them with 'exatrkx-hpc stop {self.job}'"
        )
