"""The runs of shards, grouped by each start of run-clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exatrkx_hpc.page.history import Run

#: Between two shards on a node; where the start was killed and could not note its time, this tells it from the next.
_PAUSE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of run-clients over all shards: when it began and ended, in seconds since 1970; why it was stopped."""

    began: float
    ended: float
    stopped: str = ""

    def has(self, run: Run) -> bool:
        """Say whether a shard's run is of it."""
        return self.began <= run.began <= self.ended


def noted_launches(ended: Mapping[str, str | float], stops: Mapping[str, str | float]) -> tuple[Launch, ...]:
    """Return the launches that were noted, by when they began: when they ended, and why they were stopped."""
    return tuple(
        Launch(began=float(began), ended=end, stopped=str(stops.get(began, "")))
        for began, end in ended.items()
        if isinstance(end, float)
    )


def joined(runs: Iterable[Run], launches: Sequence[Launch]) -> tuple[Run, ...]:
    """Return one run for each launch, from those of the shards in the order of their beginnings.

    A shard's run that is of no known launch goes with those that it overlaps or follows at once.
    """
    found: list[tuple[Launch | None, Run]] = []
    for run in runs:
        launch = next((one for one in launches if one.has(run)), None)
        if found and found[-1][0] == launch and (launch or run.began <= found[-1][1].ended + _PAUSE):
            found[-1] = (launch, _together(found[-1][1], run))
        else:
            found.append((launch, run))
    return tuple(
        dataclasses.replace(run, stopped=launch.stopped, killed=False) if launch else run for launch, run in found
    )


def _together(one: Run, other: Run) -> Run:
    return dataclasses.replace(
        one,
        ended=max(one.ended, other.ended),
        stopped=one.stopped or other.stopped,
        killed=one.killed or other.killed,
    )
