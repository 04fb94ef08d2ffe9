"""What happens to a run of clients, as news: to its ledger, its workers, its shards and its nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from exatrkx_hpc.base.news import Level, News, Tell, Words
from exatrkx_hpc.base.readable import names


@dataclass(frozen=True, kw_only=True)
class RunNews(News):
    """News of the whole run, or of its shard `shard`, such as 0/4, where it has shards; `node` is who tells it."""

    shard: str = ""
    node: str = ""

    def __str__(self) -> str:
        """Return the line, and before it whose it is."""
        whose = (self.node, f"shard {self.shard}" if self.shard else "")
        return "".join(f"{one}: " for one in whose if one) + self.line()

    @abstractmethod
    def line(self) -> str:
        """Return one line for people, without whose it is."""


def told_of(tell: Tell, *, shard: str = "", node: str = "") -> Tell:
    """Return a listener that tells `tell` the same, as news of this shard or of this node."""

    def told(news: News) -> None:
        if isinstance(news, RunNews):
            news = replace(news, shard=shard or news.shard, node=node or news.node)
        tell(news)

    return told


@dataclass(frozen=True, kw_only=True)
class RunResumed(RunNews):
    """A run goes on with its ledger: of `events`, so many are done, left, in quarantine.

    `new`, `changed` and `gone` say how the folder of events differs from the ledger, `again` how many events lost
    their results.
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
        """Return what is left, and what is not as it was."""
        said = [f"{self.done} of {self.events} events were done before, {self.left} are left"]
        if self.quarantined:
            said.append(f"{self.quarantined} in quarantine are skipped (retry them with --retry-failed)")
        changes = {"new": self.new, "changed": self.changed, "gone": self.gone}
        if any(changes.values()):
            said.append("events: " + ", ".join(f"{number} {what}" for what, number in changes.items() if number))
        if self.again:
            said.append(f"{self.again} results were missing or damaged")
        return "; ".join(said)


@dataclass(frozen=True, kw_only=True)
class UnitsDoubtful(RunNews):
    """The first events look as if they were in other units than the workload's."""

    code: ClassVar[str] = "units-doubtful"
    #: Results of such events mean nothing.
    usual: ClassVar[Level] = Level.WARNING
    doubt: str

    def line(self) -> str:
        """Return the doubt."""
        return f"warning: {self.doubt}"


@dataclass(frozen=True, kw_only=True)
class WorkersAboveCores(RunNews):
    """There are so many more workers than cores that they hinder each other."""

    code: ClassVar[str] = "workers-above-cores"
    #: It is slower than it could be.
    usual: ClassVar[Level] = Level.WARNING
    workers: int
    cores: int

    def line(self) -> str:
        """Return both numbers."""
        return f"-n {self.workers} is far more than the CPU cores of this machine ({self.cores}); fewer are faster"


@dataclass(frozen=True, kw_only=True)
class RunUnheard(RunNews):
    """Nobody waits for the nodes of a job any more, and `node` gives the job back; `answer` is what Slurm said."""

    code: ClassVar[str] = "run-unheard"
    #: The job's first node may be lost.
    usual: ClassVar[Level] = Level.WARNING
    answer: str

    def line(self) -> str:
        """Return what is done about it."""
        return f"no program waits for job {self.job} any more, its first node may be lost: {self.answer}"


@dataclass(frozen=True, kw_only=True)
class WorkersSpread(News):
    """A run over several nodes begins, with `workers` workers on each."""

    code: ClassVar[str] = "workers-spread"
    nodes: tuple[str, ...]
    workers: int

    def __str__(self) -> str:
        """Return the nodes, those with numbers in a row drawn together."""
        return f"{len(self.nodes)} nodes, {self.workers} workers on each: {names(self.nodes)}"


@dataclass(frozen=True, kw_only=True)
class ShardsLost(News):
    """Nodes, or their programs, ended before these shards did; what is left of them is given out again."""

    code: ClassVar[str] = "shards-lost"
    #: A node is gone.
    usual: ClassVar[Level] = Level.WARNING
    shards: tuple[int, ...]

    def __str__(self) -> str:
        """Return the shards, and what is done about them."""
        return f"{lost(self.shards)} because a node or a worker program ended; other nodes take over"


def lost(shards: Sequence[int]) -> str:
    """Return that these shards were lost, as the beginning of a sentence."""
    numbers = ", ".join(map(str, shards))
    return f"shard {numbers} was lost" if len(shards) == 1 else f"shards {numbers} were lost"


@dataclass(frozen=True, kw_only=True)
class NodeSaid(Words):
    """What a program on a node, or srun, said that is no news of ours, such as the reason of its end."""

    code: ClassVar[str] = "node-said"
