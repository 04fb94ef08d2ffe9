"""The history of a run and of the runs that it resumed: the frozen value that the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the ledger: when it began and ended, in seconds since 1970, and why it was stopped, if it was.

    A run that was killed could not say when it ended; then `ended` is the time of its last event, and `killed` true.
    """

    began: float
    ended: float
    server: str
    stopped: str = ""
    killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Events that were done in each bin of the running time: `counts` [N] between `edges` [N+1], in seconds.

    The running time is the time in which a run was on; what lay between two runs is left out, and `begins` says where.
    """

    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = (0.0,)
    begins: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """The running time."""
        return self.edges[-1]

    @property
    def rates(self) -> tuple[float, ...]:
        """Events per second in each bin."""
        widths = (right - left for left, right in pairwise(self.edges))
        return tuple(count / width for count, width in zip(self.counts, widths, strict=True))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Latencies: how many events `counts` [N] had one between `edges_ms` [N+1], in equal steps of the logarithm."""

    counts: tuple[int, ...] = ()
    edges_ms: tuple[float, ...] = ()
    figures: Latency = field(default_factory=Latency)


@dataclass(frozen=True, kw_only=True)
class History:
    """All that the page shows. A mapping that is empty is of something that is not known.

    `members` are events by the server that answered, `compute` the milliseconds of compute that Triton counted for
    each stage, `kinds` failures by kind. `items` of the kind `item` (hits) were in the events. `units` says what the
    events look like where their units are not those of the service.
    """

    model: str
    mode: str
    events: int
    done: int
    failed: int
    quarantined: int
    item: str
    items: int
    retries: int
    runs: tuple[Run, ...]
    throughput: Throughput
    latency: Spread
    counts: Mapping[str, int] = field(default_factory=dict)
    members: Mapping[str, int] = field(default_factory=dict)
    compute: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failed, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    units: str = ""

    @property
    def left(self) -> int:
        """Events that no run came to."""
        return self.events - self.done - self.failed - self.quarantined

    @property
    def events_per_second(self) -> float:
        """Events that were done per second of running time."""
        return self.done / self.throughput.seconds if self.throughput.seconds > 0 else 0.0
