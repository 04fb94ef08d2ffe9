"""Who is to blame for a delivery that failed: the event, the server that had it, or the endpoint.

A delivery is one attempt to get the answer of an event from a server. Three kinds of failed deliveries say something:

- A *strike*: the stream broke, the deadline passed, or the server could not process the request. The event may have
  caused it, or was only there. After two strikes the event is delivered alone and last. Only a strike while alone
  condemns the event, with three strikes on at least two servers, or with the fourth strike.
- A *refusal*: a server says that the event is wrong, or its answer is wrong. Two different servers must say so, where
  there are two: one of them may be sick.
- Anything else costs the event nothing, and is repeated within the patience.

A server is credible for an event if its last answer to another event was good. A sick server fails every event, so its
failures count for nothing, unless no server is credible and few events fail: each may spoil the trust for the others.
And while many other events fail, too, or if no event was ever answered well, no event is condemned: the endpoint is
the cause.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from exatrkx_hpc.work.inference.retry import Cause, Patience
from exatrkx_hpc.work.results.outcome import Strike

ALONE_AFTER: Final = 2
"""Strikes after which an event is delivered alone and last."""

STRIKES: Final = 3
"""Strikes after which an event is quarantined, if they were on at least two servers and the last one alone."""

DELIVERIES: Final = 4
"""Deliveries of an event that costs a server each time; after so many strikes, one server is enough to tell."""

WITNESSES: Final = 2
"""Refusals that blame an event: of different servers, where there are two."""

REFUSALS: Final = 6
"""Refusals of one and the same server that blame an event, if the server answers other events well."""

_OF_THE_ONLY_SERVER: Final = 4
"""Refusals of the only server that a balancer has named, if it has not answered any other event well."""

_OTHERS: Final = 2
"""Other events with failures since the last good answer; with more, the endpoint is the cause."""

_IN_A_ROW: Final = 3
"""Events condemned without a good answer in between; after so many, the endpoint is the cause."""

#: Of the pauses between two deliveries.
_PAUSES: Final = Patience(longest=2.0)

_STRIKES: Final = frozenset({Cause.TORN, Cause.DEADLINE, Cause.FAULT})


@dataclass(kw_only=True)
class Case:
    """The failed deliveries of one event: the strikes, also of earlier runs, and the refusals of this run."""

    event: str
    strikes: list[Strike] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    failed: int = 0
    since: float | None = None

    @property
    def alone(self) -> bool:
        """Whether the next delivery must be alone."""
        return len(self.strikes) >= ALONE_AFTER


class Decision(str, Enum):
    """What happens to an event after a failed delivery."""

    AGAIN = "again"
    LAST = "last"
    REFUSED = "refused"
    POISON = "poison"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a failed delivery.

    `AGAIN` and `LAST`: deliver the event again after `pause` seconds; `LAST` after all others. `REFUSED`, `POISON` and
    `ENDPOINT` end the event: because of its content, as one that costs servers, or because of the endpoint.
    `strike` is the new strike, if the delivery was one.
    """

    decision: Decision
    pause: float = 0.0
    strike: Strike | None = None


class Judge:
    """Judges the failed deliveries of one run or client; it must also be told of all good answers.

    Its memory grows with the number of servers and of events that fail, not with the number of events.
    """

    def __init__(self, *, patience: float, proven: bool = False) -> None:
        """Take the seconds for which failures that count for nothing are repeated.

        `proven` is whether an earlier run got answers.
        """
        self._patience = patience
        self._proven = proven
        self._seen: set[str] = set()
        # The last two answers of each server to different events: name of the event, good or not.
        self._answers: dict[str, deque[tuple[str, bool]]] = {}
        # Events with a failed delivery since the last good answer.
        self._suffering: set[str] = set()
        self._condemned = 0

    @property
    def members(self) -> frozenset[str]:
        """The servers that the balancer has named so far."""
        return frozenset(self._seen)

    @property
    def many_suffer(self) -> bool:
        """Whether more events have failed since the last good answer than may be to blame themselves."""
        return len(self._suffering) > _OTHERS + 1

    def answered(self, event: str, member: str) -> None:
        """Note a good answer."""
        self._proven = True
        self._suffering.clear()
        self._condemned = 0
        self._note(event, member, good=True)

    def _note(self, event: str, member: str, *, good: bool) -> None:
        if member:
            self._seen.add(member)
        answers = self._answers.setdefault(member, deque(maxlen=2))
        if answers and answers[-1][0] == event:
            answers.pop()
        answers.append((event, good))

    def credible(self, event: str, member: str) -> bool | None:
        """Return whether the last answer of a server to another event was good; None without such an answer."""
        others = [good for name, good in self._answers.get(member, ()) if name != event]
        return others[-1] if others else None

    def failed(self, case: Case, cause: Cause, member: str, *, alone: bool, now: float | None = None) -> Verdict:
        """Judge a failed delivery of a case, and add it to the case; `alone` is whether it was delivered alone.

        `now` is in seconds of a monotonic clock.
        """
        now = time.monotonic() if now is None else now
        credible = self.credible(case.event, member)
        case.failed += 1
        case.since = now if case.since is None else case.since
        self._suffering.add(case.event)
        if cause is not Cause.DEADLINE:  # which has no server's answer
            self._note(case.event, member, good=False)
        if cause is Cause.REFUSED:
            case.refusals.append(member)
            return self._refused(case, member, credible, now)
        if cause in _STRIKES and self._counts(case.event, cause, member, credible, alone=alone):
            strike = Strike(member=member, cause=cause.value, at=time.time(), alone=alone)
            case.strikes.append(strike)
            return self._struck(case, strike, credible)
        return self._again(case, now)

    def _counts(self, event: str, cause: Cause, member: str, credible: bool | None, *, alone: bool) -> bool:
        """Return whether a failure is a strike: not one of the balancer itself, nor one of a sick server."""
        if cause is Cause.TORN and not member and self._seen:
            return False  # the balancer names each server that fails, so the connection to the balancer broke
        if cause is not Cause.FAULT or credible is not False:
            return True
        # Without a server to trust, a repetition tells nothing more, and events that exhaust a server would alternate.
        # But while many events fail, the servers are sick, and an event waits for them even if it is alone.
        return not self.many_suffer and (alone or not any(self.credible(event, one) for one in self._seen))

    def _refused(self, case: Case, member: str, credible: bool | None, now: float) -> Verdict:
        refusers = set(case.refusals)
        several = len(refusers) >= WITNESSES
        trusted = any(self.credible(case.event, one) for one in refusers)
        if several and (trusted or refusers >= self._seen):
            return Verdict(decision=Decision.REFUSED)
        enough = REFUSALS if trusted else None
        if not several and not self._seen - {member}:  # no other server is known
            enough = WITNESSES if credible or not member else _OF_THE_ONLY_SERVER
        if enough is not None and len(case.refusals) >= enough:
            return Verdict(decision=Decision.REFUSED)
        return self._again(case, now)

    def _struck(self, case: Case, strike: Strike, credible: bool | None) -> Verdict:
        number = len(case.strikes)
        pause = _PAUSES.pause(case.failed - 1)
        if number < STRIKES or not strike.alone:
            return Verdict(decision=Decision.LAST, pause=pause, strike=strike)
        if self._condemns(case, strike, credible):
            self._condemned += 1
            self._suffering.discard(case.event)
            return Verdict(decision=Decision.POISON, strike=strike)
        if number < DELIVERIES:
            return Verdict(decision=Decision.LAST, pause=pause, strike=strike)
        return Verdict(decision=Decision.ENDPOINT, strike=strike)

    def _condemns(self, case: Case, strike: Strike, credible: bool | None) -> bool:
        """Return whether a strike while alone, at least the third one, condemns the event."""
        others = self._suffering - {case.event}
        if not self._proven or len(others) > _OTHERS or self._condemned >= _IN_A_ROW:
            return False
        fault = strike.cause == Cause.FAULT.value
        if fault and not credible:
            return False
        several = len({one.member for one in case.strikes if one.member}) > 1
        if len(case.strikes) >= DELIVERIES:
            return several or not fault
        return several or len(self._seen) <= 1

    def _again(self, case: Case, now: float) -> Verdict:
        """Repeat a delivery that counts for nothing, until the patience ends."""
        if case.since is not None and now - case.since > self._patience and case.failed > REFUSALS:
            return Verdict(decision=Decision.ENDPOINT)
        return Verdict(decision=Decision.AGAIN, pause=_PAUSES.pause(case.failed - 1))


def poisoned(case: Case, reason: str) -> str:
    """Return the reason of an event that costs servers: how often, where, and the last failure."""
    members = sorted({strike.member for strike in case.strikes if strike.member})
    where = f" on {', '.join(members)}" if members else ""
    return (
        f"{len(case.strikes)} deliveries ended without an answer{where}, the last one with no other event in flight: "
        f"{reason}"
    )
