"""News of a client run: its ledger, its workers, its shards and its nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from exatrkx_hpc.base.news import Level, News, Tell, Words
from exatrkx_hpc.base.readable import duration, names


@dataclass(frozen=True, kw_only=True)
class RunNews(News):
    """News of the whole run, or of one `shard`, such as 0/4; `node` is the node that reports it."""

    shard: str = ""
    node: str = ""

    def __str__(self) -> str:
        """Return the line, after the prefix for node and shard."""
        whose = (self.node, f"shard {self.shard}" if self.shard else "")
        return "".join(f"{one}: " for one in whose if one) + self.line()

    @abstractmethod
    def line(self) -> str:
        """Return one line for people, without the prefix for node and shard."""


def told_of(tell: Tell, *, shard: str = "", node: str = "") -> Tell:
    """Return a listener that adds this shard or node to each RunNews and passes all news to `tell`."""

    def told(news: News) -> None:
        if isinstance(news, RunNews):
            news = replace(news, shard=shard or news.shard, node=node or news.node)
        tell(news)

    return told


@dataclass(frozen=True, kw_only=True)
class RunResumed(RunNews):
    """A run resumes from its ledger: of its `events`, how many are `done`, `left` and `quarantined`.

    `new`, `changed` and `gone` are the differences between the folder of events and the ledger. `again` is the number
    of missing or damaged results.
    """

    code: ClassVar[str] = "run-resumed"
    events: int
    done: int
    left: int
    quarantined: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0
    again: int = 0

    def line(self) -> str:
        """Return what is left to do and what changed."""
        said = [f"{self.done} of {self.events} events were done before, {self.left} are left"]
        if self.quarantined:
            said.append(f"{self.quarantined} in quarantine are skipped (retry them with --retry-failed)")
        changes = {"new": self.new, "changed": self.changed, "gone": self.gone}
        if any(changes.values()):
            said.append("events: " + ", ".join(f"{number} {what}" for what, number in changes.items() if number))
        if self.again:
            said.append(f"{self.again} results were missing or damaged")
        return "; ".join(said)


def listed(kinds: Mapping[str, int]) -> str:
    """Return kinds with their numbers: `2 hidden, 1 *.json`."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


@dataclass(frozen=True, kw_only=True)
class FilesPassedOver(RunNews):
    """What lies in the folder of events and is no event, by kind: `hidden`, `folder`, `companion`, `*.json`, …."""

    code: ClassVar[str] = "files-passed-over"
    folder: str
    kinds: Mapping[str, int]

    @property
    def level(self) -> Level:
        """INFO; DEBUG if it is only the truth, which belongs there."""
        return Level.DEBUG if self.kinds.keys() <= {"truth folder"} else self.usual

    def line(self) -> str:
        """Return the folder, and each kind with its number."""
        return f"no events, and passed over in {self.folder}: {listed(self.kinds)}"


@dataclass(frozen=True, kw_only=True)
class NoFinalNewline(RunNews):
    """None of the first `looked_at` CSV files ends with a newline, so a file that was cut cannot be known as such."""

    code: ClassVar[str] = "no-final-newline"
    #: A cut file gives a wrong result.
    usual: ClassVar[Level] = Level.WARNING
    looked_at: int

    def line(self) -> str:
        """Return the doubt and the remedy."""
        return (
            f"warning: the first {self.looked_at} CSV files do not end with a newline, so a file that is cut inside "
            "its last number cannot be told from a whole one; end each file with a newline"
        )


@dataclass(frozen=True, kw_only=True)
class LedgerRebuilt(RunNews):
    """The ledger of `out` was lost, and is rebuilt from the journal: `taken` results are proven, `unproven` are not."""

    code: ClassVar[str] = "ledger-rebuilt"
    #: What was known of failures and of the time of each event is lost.
    usual: ClassVar[Level] = Level.WARNING
    out: str
    taken: int
    unproven: int = 0

    def line(self) -> str:
        """Return both numbers, and where the unproven results are."""
        aside = f"; {self.unproven} that it does not prove are in OUT/unproven" if self.unproven else ""
        return f"warning: the ledger of {self.out} is missing; results.jsonl proves {self.taken} results{aside}"


@dataclass(frozen=True, kw_only=True)
class ModelsChanged(RunNews):
    """The models of `server` changed, and the run goes on because of `--accept-model-change`."""

    code: ClassVar[str] = "models-changed"
    #: The results of one folder are of several models.
    usual: ClassVar[Level] = Level.WARNING
    server: str
    changes: str

    def line(self) -> str:
        """Return what changed."""
        return f"warning: the models of {self.server} changed, and the results are of both: {self.changes}"


@dataclass(frozen=True, kw_only=True)
class UnitsDoubtful(RunNews):
    """The first events seem to have other units than the workload expects."""

    code: ClassVar[str] = "units-doubtful"
    #: Results of such events are meaningless.
    usual: ClassVar[Level] = Level.WARNING
    doubt: str

    def line(self) -> str:
        """Return the doubt as a warning."""
        return f"warning: {self.doubt}"


@dataclass(frozen=True, kw_only=True)
class WorkersAboveCores(RunNews):
    """There are far more workers than CPU cores, so the workers slow each other down."""

    code: ClassVar[str] = "workers-above-cores"
    #: The run is slower than necessary.
    usual: ClassVar[Level] = Level.WARNING
    workers: int
    cores: int

    def line(self) -> str:
        """Return both numbers."""
        return f"-n {self.workers} is far more than the CPU cores of this machine ({self.cores}); fewer are faster"


@dataclass(frozen=True, kw_only=True)
class EndpointSilent(RunNews):
    """For `seconds`, the run has had no result from the endpoint `server`, after `tried` failed attempts.

    `left` is the time until the run gives up, in seconds; `reason` is the last failure.
    """

    code: ClassVar[str] = "endpoint-silent"
    #: The run waits; somebody may have to act.
    usual: ClassVar[Level] = Level.WARNING
    server: str
    seconds: float
    tried: int
    left: float
    reason: str

    def line(self) -> str:
        """Return since when, how often it was tried, when the run gives up, and the last failure."""
        since = duration(round(self.seconds))
        rest = f"gives up in {duration(round(self.left))}" if self.left >= 1 else "about to give up"
        return f"no result from {self.server} for {since}, {self.tried} retries, {rest}; last failure: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class EndpointAnswers(RunNews):
    """After `seconds` without a result, the endpoint `server` answers again."""

    code: ClassVar[str] = "endpoint-answers"
    server: str
    seconds: float

    def line(self) -> str:
        """Return how long it was silent."""
        return f"{self.server} answers again, after {duration(round(self.seconds))}"


@dataclass(frozen=True, kw_only=True)
class EventPoisoned(RunNews):
    """An event goes into quarantine because it costs a server at each delivery; `members` are those servers."""

    code: ClassVar[str] = "event-poisoned"
    #: Servers were lost.
    usual: ClassVar[Level] = Level.WARNING
    event: str
    deliveries: int
    members: tuple[str, ...]
    reason: str

    def line(self) -> str:
        """Return the event and why."""
        return f"{self.event} goes into quarantine: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class RunUnheard(RunNews):
    """No program waits for the job any more, so `node` requeues or cancels it; `answer` is the outcome."""

    code: ClassVar[str] = "run-unheard"
    #: The job's first node may be lost.
    usual: ClassVar[Level] = Level.WARNING
    answer: str

    def line(self) -> str:
        """Return the reason and the outcome."""
        return f"no program waits for job {self.job} any more, its first node may be lost: {self.answer}"


@dataclass(frozen=True, kw_only=True)
class WorkersSpread(News):
    """A run over several nodes begins, with `workers` workers per node."""

    code: ClassVar[str] = "workers-spread"
    nodes: tuple[str, ...]
    workers: int

    def __str__(self) -> str:
        """Return the nodes; consecutive numbers become a range."""
        return f"{len(self.nodes)} nodes, {self.workers} workers on each: {names(self.nodes)}"


@dataclass(frozen=True, kw_only=True)
class ShardsLost(News):
    """Nodes or worker programs ended before these shards were done; other nodes get the rest of the shards."""

    code: ClassVar[str] = "shards-lost"
    #: A node may be lost.
    usual: ClassVar[Level] = Level.WARNING
    shards: tuple[int, ...]

    def __str__(self) -> str:
        """Return the lost shards and the reaction."""
        return f"{lost(self.shards)} because a node or a worker program ended; other nodes take over"


def lost(shards: Sequence[int]) -> str:
    """Return the beginning of a sentence: these shards were lost."""
    numbers = ", ".join(map(str, shards))
    return f"shard {numbers} was lost" if len(shards) == 1 else f"shards {numbers} were lost"


@dataclass(frozen=True, kw_only=True)
class NodeSaid(Words):
    """A line from srun or from a program on a node that is not JSON news, such as the reason of its end."""

    code: ClassVar[str] = "node-said"
