"""The cause of failures: the event, its worker, the model or the endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

DEATHS_OF_ONE_EVENT: Final = 3
"""Worker deaths after which an event is given up: the event may be the cause."""

DEAD_ENDPOINT: Final = 5.0
"""Minimum seconds without a result before a dead endpoint stops the run, if the patience is shorter."""

BROKEN_MODEL: Final = 100
"""Consecutive events that fail in the model, after which the model is considered broken."""


class Faults:
    """Counts the failures of one run and decides when to stop: methods return a reason to stop, or None."""

    def __init__(self, *, server: str, patience: float, workers: int, clock: Callable[[], float]) -> None:
        """Take the endpoint, and the patience in seconds for which a request is retried."""
        self._server, self._workers, self._clock = server, workers, clock
        self._silence = max(patience, DEAD_ENDPOINT)
        self._deaths: Counter[str] = Counter()
        self._deaths_in_a_row = self._model_failures = 0
        self._last_good = self._last_result = clock()

    def begin(self) -> None:
        """Start the clock."""
        self._last_good = self._last_result = self._clock()

    def answered(self) -> None:
        """Note that a result arrived."""
        self._last_good = self._last_result = self._clock()
        self._model_failures = 0

    @property
    def silent(self) -> float | None:
        """Seconds without a result, once they are enough to ask whether the endpoint is dead; None before."""
        silence = self._clock() - self._last_good
        return silence if silence >= self._silence else None

    def lives(self) -> None:
        """Note that the endpoint, when asked, was ready: it is asked again after another such time."""
        self._last_good = self._clock()

    @property
    def lies(self) -> bool:
        """Whether an endpoint that says that it is ready has given no result for twice the time."""
        return self._clock() - self._last_result >= 2 * self._silence

    def dead(self, reason: str) -> str:
        """Return the reason to stop because the endpoint is dead."""
        return f"no results from {self._server} for {self._clock() - self._last_result:.0f} s ({reason})"

    def written(self, event: str) -> int:
        """Note that the result of an event is on disk; return the number of workers that tried it."""
        self._deaths_in_a_row = 0
        return self._deaths.pop(event, 0) + 1

    def given_up(self, event: str, kind: str) -> int:
        """Note that an event failed; return the number of workers that tried it, dead ones included."""
        return self._deaths.pop(event, 0) + (kind != "worker")

    def of_failure(self, kind: str, reason: str) -> str | None:
        """Note a failed event; return a reason to stop the run if all events would fail this way, or None."""
        self._model_failures += kind == "model"
        if self._model_failures >= BROKEN_MODEL:
            return (
                f"{BROKEN_MODEL} events in a row failed in the model, the last one: {reason}; fix the model, then "
                "retry them with --retry-failed"
            )
        return None

    def killed_again(self, event: str) -> bool:
        """Note that an event's worker died; return whether to give up the event."""
        self._deaths[event] += 1
        return self._deaths[event] >= DEATHS_OF_ONE_EVENT

    def of_death(self, ending: str) -> str | None:
        """Note a dead worker; return a reason to stop the run if too many died in a row, or None."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > DEATHS_OF_ONE_EVENT * (self._workers + 1):
            return f"the workers keep dying, the last one by {ending}; see their output"
        return None
