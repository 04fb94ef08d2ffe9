"""News of a running farm: its job, servers, balancer, Prometheus and monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.base.readable import duration, names
from exatrkx_hpc.fleet.members.reconcile import MemberState

#: End states of a job that are no error.
_WANTED = (JobState.COMPLETED, JobState.CANCELLED)
#: The effect of a missing Prometheus, which is usual on login nodes.
WITHOUT_PROMETHEUS = "the endpoint goes without it, and 'exatrkx-hpc metrics' asks the servers themselves"


@dataclass(frozen=True, kw_only=True)
class MemberChanged(News):
    """A server is new, or its state or start changed; `ready` is the number of ready servers now."""

    code: ClassVar[str] = "member-changed"
    server: str
    node: str
    state: MemberState
    note: str
    ready: int

    @property
    def level(self) -> Level:
        """WARNING for a server that is gone, even on request, or ejected; otherwise INFO."""
        return Level.WARNING if self.state in ("gone", "ejected") else Level.INFO

    def __str__(self) -> str:
        """Return the server, its state, its note and the number of ready servers."""
        return f"{self.server}: {self.state} ({self.note}), {self.ready} ready"


@dataclass(frozen=True, kw_only=True)
class RestartAsked(News):
    """The monitor asks the script of a server that is sick for long to restart it."""

    code: ClassVar[str] = "restart-asked"
    #: Its capacity is missing.
    usual: ClassVar[Level] = Level.WARNING
    server: str
    reason: str

    def __str__(self) -> str:
        """Return the server and what is wrong with it."""
        return f"{self.server}: asked to restart ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class JobChanged(News):
    """The job's state or its reason changed; `back` is true if the scheduler answers again."""

    code: ClassVar[str] = "job-changed"
    state: JobState
    reason: str = ""
    back: bool = False

    @property
    def level(self) -> Level:
        """ERROR for an end other than COMPLETED or CANCELLED; otherwise INFO."""
        return Level.ERROR if self.state.over and self.state not in _WANTED else Level.INFO

    def __str__(self) -> str:
        """Return the state and its reason."""
        back = ", Slurm answers again" if self.back else ""
        return f"job: {self.state.value}{back}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class SchedulerSilent(News):
    """The scheduler does not answer; the endpoint keeps running."""

    code: ClassVar[str] = "scheduler-silent"
    #: The scheduler may answer again.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return that the job's state is unknown, and why."""
        return f"job: state unknown, the endpoint keeps running ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class JobProgress(News):
    """Progress of a job towards `wanted` ready servers, while a command waits for them."""

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
    """The balancer listens; `grpc` and `http` are the addresses that clients use.

    `adopted` is true for the balancer of an earlier monitor, which served all the time.
    """

    code: ClassVar[str] = "endpoint-opened"
    grpc: str
    http: str
    adopted: bool = False

    def __str__(self) -> str:
        """Return the gRPC address, which most clients use."""
        return f"endpoint: {self.grpc}{', taken over from an earlier monitor' if self.adopted else ''}"


@dataclass(frozen=True, kw_only=True)
class EndpointUnguarded(News):
    """The endpoint asks for no token, although other users can reach it at `address`."""

    code: ClassVar[str] = "endpoint-unguarded"
    #: Strangers may read events and use up the servers.
    usual: ClassVar[Level] = Level.WARNING
    address: str

    def __str__(self) -> str:
        """Return the address, and how to close the endpoint."""
        return f"access: open, everyone who reaches {self.address} can use the endpoint; set balancer.access to token"


@dataclass(frozen=True, kw_only=True)
class AddressUnknown(News):
    """No internal address of this machine is known; the balancer listens on `address`, which means all of them."""

    code: ClassVar[str] = "address-unknown"
    #: The endpoint may be reachable from outside.
    usual: ClassVar[Level] = Level.WARNING
    name: str
    address: str

    def __str__(self) -> str:
        """Return the machine, the address, and how to choose another."""
        return (
            f"address: {self.name} has no known internal address; listening on all ({self.address}), set balancer.host"
        )


@dataclass(frozen=True, kw_only=True)
class BalancerReloaded(News):
    """The balancer now sends new requests to these servers."""

    code: ClassVar[str] = "balancer-reloaded"
    #: MemberChanged already reports the servers to users.
    usual: ClassVar[Level] = Level.DEBUG
    servers: tuple[str, ...]

    def __str__(self) -> str:
        """Return the servers' names."""
        return f"balancer: {len(self.servers)} server(s){': ' + ', '.join(self.servers) if self.servers else ''}"


@dataclass(frozen=True, kw_only=True)
class BalancerEnded(News):
    """The balancer ended unexpectedly; the monitor restarts it."""

    code: ClassVar[str] = "balancer-ended"
    #: Requests in flight were lost.
    usual: ClassVar[Level] = Level.WARNING
    balancer: str
    endpoint: str

    def __str__(self) -> str:
        """Return the balancer and its address."""
        return f"balancer: {self.balancer} has ended; starts again on {self.endpoint}"


@dataclass(frozen=True, kw_only=True)
class BalancerWarned(News):
    """The balancer itself complains: about its connections, files, memory or worker processes."""

    code: ClassVar[str] = "balancer-warned"
    #: Requests may fail, although the servers are well.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return the complaint, with the next step."""
        return f"balancer: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class NotObserved(News):
    """`what` could not be observed; the endpoint keeps its last state of it."""

    code: ClassVar[str] = "not-observed"
    #: A server that dies meanwhile stays in the endpoint.
    usual: ClassVar[Level] = Level.WARNING
    what: str
    reason: str

    def __str__(self) -> str:
        """Return what could not be observed, why, and the effect."""
        return f"{self.what}: not observed ({self.reason}); the endpoint keeps its last state"


@dataclass(frozen=True, kw_only=True)
class LocksMissing(News):
    """The run directory's file system knows no locks; a lease keeps a second monitor away instead."""

    code: ClassVar[str] = "locks-missing"
    #: A monitor that was killed on another machine holds its lease for some minutes.
    usual: ClassVar[Level] = Level.WARNING
    file: str
    reason: str

    def __str__(self) -> str:
        """Return the file, the answer of its file system, and what takes the lock's place."""
        return f"the file system of {self.file} knows no locks ({self.reason}); a lease beside it takes their place"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreStarted(News):
    """Prometheus runs at `address`."""

    code: ClassVar[str] = "prometheus-started"
    address: str

    def __str__(self) -> str:
        """Return the address of its web page."""
        return f"prometheus: http://{self.address}"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreMissing(News):
    """Prometheus is not on this machine."""

    code: ClassVar[str] = "prometheus-missing"
    #: There is no history, and there are no alerts.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return what is missing, and the effect."""
        return f"prometheus: {self.reason}; {WITHOUT_PROMETHEUS}"


@dataclass(frozen=True, kw_only=True)
class MetricsStoreEnded(News):
    """Prometheus ended unexpectedly; the monitor restarts it."""

    code: ClassVar[str] = "prometheus-ended"
    #: The endpoint keeps running.
    usual: ClassVar[Level] = Level.WARNING

    def __str__(self) -> str:
        """Return that Prometheus restarts."""
        return "prometheus: it has ended; starts again"


@dataclass(frozen=True, kw_only=True)
class NotApplied(News):
    """A change could not be applied to `part` (`balancer` or `prometheus`); the monitor retries at each tick."""

    code: ClassVar[str] = "part-not-applied"
    #: The last valid configuration stays active.
    usual: ClassVar[Level] = Level.WARNING
    part: str
    reason: str

    def __str__(self) -> str:
        """Return the part and the reason."""
        return f"{self.part}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MonitorFailed(News):
    """An error ended the monitor. `endpoint` still answers, with its last servers; empty if it was stopped, too."""

    code: ClassVar[str] = "monitor-failed"
    #: Servers no longer join or leave the endpoint.
    usual: ClassVar[Level] = Level.ERROR
    reason: str
    endpoint: str = ""

    def __str__(self) -> str:
        """Return the error, and what became of the endpoint."""
        left = f"; {_serves(self.endpoint, self.job)}" if self.endpoint else ""
        return f"monitor ended: {self.reason}{left}"


@dataclass(frozen=True, kw_only=True)
class MonitorStopped(News):
    """The monitor was stopped; the servers of its job keep running without an endpoint."""

    code: ClassVar[str] = "monitor-stopped"

    def __str__(self) -> str:
        """Return that the servers keep running, and how to stop them."""
        return (
            f"monitor stopped; the servers of job {self.job} keep running, stop them with 'exatrkx-hpc stop {self.job}'"
        )


@dataclass(frozen=True, kw_only=True)
class MonitorLeft(News):
    """The monitor ended on request and left its balancer serving at `endpoint`."""

    code: ClassVar[str] = "monitor-left"
    #: Servers no longer join or leave the endpoint.
    usual: ClassVar[Level] = Level.WARNING
    endpoint: str

    def __str__(self) -> str:
        """Return the address and the next step."""
        return f"monitor ended; {_serves(self.endpoint, self.job)}"


@dataclass(frozen=True, kw_only=True)
class MonitorAbsent(News):
    """A client uses an endpoint whose monitor has not been heard of for `seconds`; its balancer answers."""

    code: ClassVar[str] = "monitor-absent"
    #: Requests to a server that died fail, and are retried.
    usual: ClassVar[Level] = Level.WARNING
    endpoint: str
    seconds: float

    def __str__(self) -> str:
        """Return since when there is no monitor, the effect and the next step."""
        return (
            f"no monitor for {duration(round(self.seconds))}: {self.endpoint} still answers, but servers that die stay "
            f"listed; start 'exatrkx-hpc monitor {self.job}'"
        )


def _serves(endpoint: str, job: str) -> str:
    return f"{endpoint} still serves, with its last servers; start 'exatrkx-hpc monitor {job}' again"


@dataclass(frozen=True, kw_only=True)
class JobStopping(News):
    """A stop of a job waits, for `seconds` s so far.

    `servers` have not ended, on nodes that the job has; `lost` are nodes that the job has lost with servers on them.
    """

    code: ClassVar[str] = "job-stopping"
    seconds: float
    state: JobState
    servers: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return what the stop waits for, and the nodes that cannot answer."""
        waits = f"{_count(len(self.servers))}, {names(self.servers)}" if self.servers else "Slurm to end the job"
        lost = f"; lost {names(self.lost)}" if self.lost else ""
        return f"job {self.job}: {self.state.value}, waiting for {self.seconds:.0f} s for {waits}{lost}"


def _count(servers: int) -> str:
    return "1 server" if servers == 1 else f"{servers} servers"
