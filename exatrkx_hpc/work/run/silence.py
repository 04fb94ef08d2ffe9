"""How long the endpoint has given no result, as the progress and the news tell it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.work.news import EndpointAnswers, EndpointSilent

EVERY: Final = 10.0
"""Seconds between two lines while no server answers."""

_SHOWN: Final = 2.0
"""Seconds without a result before the progress shows them: servers come and go."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A time without a result: its seconds so far, the retries in it, and the seconds until the run gives up."""

    seconds: float
    tried: int
    left: float


class Listener:
    """Notes retries and results, and tells when no server answers for long."""

    def __init__(self, *, server: str, patience: float, tell: Tell, clock: Callable[[], float]) -> None:
        """Take the endpoint and the seconds until the run gives up."""
        self._server, self._patience, self._tell, self._clock = server, patience, tell, clock
        self._since: float | None = None
        self._told: float | None = None
        self._tried = 0
        self._reason = ""

    def failed(self, reason: str) -> None:
        """Note a failed attempt."""
        self._since = self._clock() if self._since is None else self._since
        self._tried += 1
        self._reason = reason

    def answered(self) -> None:
        """Note a result."""
        if self._told is not None and self._since is not None:
            self._tell(EndpointAnswers(server=self._server, seconds=self._clock() - self._since))
        self._since = self._told = None
        self._tried = 0

    @property
    def silence(self) -> Silence | None:
        """The time without a result; None while there is none to speak of."""
        if self._since is None or (seconds := self._clock() - self._since) < _SHOWN:
            return None
        return Silence(seconds=seconds, tried=self._tried, left=max(0.0, self._patience - seconds))

    def look(self) -> Silence | None:
        """Tell about the silence, if it is time for another line, and return it."""
        silence, now = self.silence, self._clock()
        if silence is not None and self._since is not None:
            last = self._since if self._told is None else self._told
            if now - last >= EVERY:
                self._told = now
                self._tell(
                    EndpointSilent(
                        server=self._server,
                        seconds=silence.seconds,
                        tried=silence.tried,
                        left=silence.left,
                        reason=self._reason,
                    )
                )
        return silence
