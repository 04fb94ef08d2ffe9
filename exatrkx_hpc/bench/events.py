"""News of a scan; measure/events.py has those of its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.news import News


@dataclass(frozen=True, kw_only=True)
class BenchEventsWritten(News):
    """So many events of `folder` are written as the input of perf_analyzer."""

    code: ClassVar[str] = "bench-events"
    events: int
    folder: str

    def __str__(self) -> str:
        """Return how many, and of which folder."""
        return f"events: {self.events} of {self.folder}"


@dataclass(frozen=True, kw_only=True)
class BenchWarming(News):
    """A placement is up and warms up, which counts for nothing."""

    code: ClassVar[str] = "bench-warming"
    servers: int
    instances: int

    def __str__(self) -> str:
        """Return the placement."""
        return f"{self.servers} server(s) x {self.instances} instance(s): warming up"
