"""The history of a run and of the runs that it resumed: all values that the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the ledger: its begin and end, in seconds since 1970, and the reason of an early stop.

    A killed run wrote no end: then `ended` is the time of its last event, and `killed` is true.
    """

    began: float
    ended: float
    server: str
    stopped: str = ""
    killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Events done in each bin of the running time: `counts` `[N]` between `edges` `[N+1]`, in seconds.

    The running time leaves out the pauses between runs; `begins` has the running times at which a run resumed.
    """

    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = (0.0,)
    begins: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """The running time in seconds."""
        return self.edges[-1]

    @property
    def rates(self) -> tuple[float, ...]:
        """Events per second in each bin."""
        widths = (right - left for left, right in pairwise(self.edges))
        return tuple(count / width for count, width in zip(self.counts, widths, strict=True))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A latency histogram: events `counts` `[N]` between `edges_ms` `[N+1]`, in equal logarithmic steps."""

    counts: tuple[int, ...] = ()
    edges_ms: tuple[float, ...] = ()
    figures: Latency = field(default_factory=Latency)


@dataclass(frozen=True, kw_only=True)
class History:
    """All values that the page shows; an empty mapping means that the values are unknown.

    `members` counts events by server, `kinds` failures by kind. `compute` is the compute time of each stage that Triton
    counted, in milliseconds. `items` is the number of items of the kind `item` (hits) in the events. `units` describes
    the events when their units are not those of the service.
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
        """Events that no run has tried."""
        return self.events - self.done - self.failed - self.quarantined

    @property
    def events_per_second(self) -> float:
        """Events done per second of running time."""
        return self.done / self.throughput.seconds if self.throughput.seconds > 0 else 0.0
