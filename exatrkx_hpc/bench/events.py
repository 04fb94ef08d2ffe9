"""News of a scan; measure/events.py has those of its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.news import News


@dataclass(frozen=True, kw_only=True)
class BenchEventsWritten(News):
    """The events of `folder` are written as input of perf_analyzer; `events` is their number."""

    code: ClassVar[str] = "bench-events"
    events: int
    folder: str

    def __str__(self) -> str:
        """Return the number of events and the folder."""
        return f"events: {self.events} of {self.folder}"


@dataclass(frozen=True, kw_only=True)
class BenchWarming(News):
    """A placement is ready and warms up; the warm-up is not measured."""

    code: ClassVar[str] = "bench-warming"
    servers: int
    instances: int

    def __str__(self) -> str:
        """Return the placement."""
        return f"{self.servers} server(s) x {self.instances} instance(s): warming up"
