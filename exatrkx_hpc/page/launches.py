"""Group the runs of shards by the start of run-clients that ran them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from exatrkx_hpc.page.history import Run

#: Longest pause between two shards of one start, in seconds. It separates starts that were killed before they noted
#: their time.
_PAUSE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of run-clients over all shards: begin and end in seconds since 1970, and the reason of a stop."""

    began: float
    ended: float
    stopped: str = ""

    def has(self, run: Run) -> bool:
        """Return whether a shard's run belongs to this start."""
        return self.began <= run.began <= self.ended


def noted_launches(ended: Mapping[str, str | float], stops: Mapping[str, str | float]) -> tuple[Launch, ...]:
    """Return the noted launches, from their ends and the reasons of their stops, both by begin."""
    return tuple(
        Launch(began=float(began), ended=end, stopped=str(stops.get(began, "")))
        for began, end in ended.items()
        if isinstance(end, float)
    )


def joined(runs: Iterable[Run], launches: Sequence[Launch]) -> tuple[Run, ...]:
    """Join the runs of shards, sorted by begin, into one run per launch.

    A run without a known launch joins the runs that it overlaps or follows within 5 s.
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
