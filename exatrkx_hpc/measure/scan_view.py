"""The points of a scan, grouped for its figures."""

from __future__ import annotations

from dataclasses import dataclass

from exatrkx_hpc.measure.recommend import Summary


@dataclass(frozen=True, kw_only=True)
class ScanView:
    """The points of a scan, with servers and without, and the title of its figures."""

    served: tuple[Summary, ...]
    direct: tuple[Summary, ...]
    title: str

    @property
    def servers(self) -> tuple[int, ...]:
        """The numbers of servers."""
        return tuple(sorted({one.point.servers for one in self.served}))

    @property
    def instances(self) -> tuple[int, ...]:
        """The numbers of instances in a server."""
        return tuple(sorted({one.point.instances for one in self.served}))

    def at(self, servers: int, instances: int) -> list[Summary]:
        """Return the points of a placement, in the order of `served` (by concurrency)."""
        return [one for one in self.served if (one.point.servers, one.point.instances) == (servers, instances)]

    def best(self, servers: int) -> list[Summary]:
        """Return the fastest point of each number of instances, for this number of servers."""
        groups = [self.at(servers, instances) for instances in self.instances]
        return [max(group, key=lambda one: one.events_per_s) for group in groups if group]

    def note(self, text: str) -> str:
        """Return the line below a figure: `text`, and the meaning of the error bars."""
        numbers = sorted({one.repetitions for one in (*self.served, *self.direct)})
        if numbers == [1]:
            return f"{text}; one repetition, no error bars"
        often = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        return f"{text}; means of {often} repetitions, bars: ± 1 standard deviation"
