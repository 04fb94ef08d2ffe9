"""Judge servers by their answers: eject outliers for growing pauses, and try each server before its first request.

A server is compared with the others that serve the same models: events that are invalid fail everywhere and cost no
server its place. At least a third of the servers that answer always stays. No side effects.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.members.reconcile import Member

#: How far apart, in standard deviations, two shares of failures must be to be no accident.
_NO_ACCIDENT: Final = 5.0
#: Successes from which a mean latency counts, and the latency in seconds from which a server is slow at all.
_ENOUGH: Final = 5
_SLOW: Final = 0.1
#: Trials that a server may fail before the others are looked at, if no server has passed one.
_TRIALS: Final = 3

Start: TypeAlias = tuple[str, int]
"""One start of a server: its name, and the number of the start."""


def start_of(member: Member) -> Start:
    """Return the start of the server that the member is."""
    return member.name, member.record.starts


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counters of one model at one server since the server's start.

    `seconds` is the total time of the successes; `pending` is the number of requests in the queue now.
    """

    successes: int = 0
    failures: int = 0
    seconds: float = 0.0
    pending: int = 0

    @property
    def ended(self) -> int:
        """The number of requests that have ended."""
        return self.successes + self.failures

    def since(self, earlier: Work) -> Work:
        """Return the difference to earlier counters; all of it if they have been reset in between."""
        if self.ended < earlier.ended:
            return self
        return Work(
            successes=self.successes - earlier.successes,
            failures=self.failures - earlier.failures,
            seconds=max(0.0, self.seconds - earlier.seconds),
            pending=self.pending,
        )

    def __add__(self, other: Work) -> Work:
        return Work(
            successes=self.successes + other.successes,
            failures=self.failures + other.failures,
            seconds=self.seconds + other.seconds,
            pending=self.pending + other.pending,
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of one start of a server; times are in seconds of a monotonic clock.

    `samples` are the counters by model of the last window, oldest first. `moved` says when each model last ended a
    request or had none waiting. `passed` is true after a trial; `fault` is why the server is ejected, until `until` at
    least; `since` is the begin of its ejection, silence or start.
    """

    starts: int
    samples: tuple[tuple[float, Mapping[str, Work]], ...] = ()
    moved: Mapping[str, float] = field(default_factory=dict)
    passed: bool = False
    trial_fault: str = ""
    trials_failed: int = 0
    fault: str = ""
    until: float = 0.0
    ejections: int = 0
    since: float | None = None

    @property
    def window(self) -> dict[str, Work]:
        """The work of each model within the window."""
        if len(self.samples) < 2:
            return {}
        first, last = self.samples[0][1], self.samples[-1][1]
        return {model: work.since(first.get(model, Work())) for model, work in last.items()}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was observed in one look: counters by server and model, and the ends of trials by start ('' is passed)."""

    samples: Mapping[str, Mapping[str, Work]] = field(default_factory=dict)
    trials: Mapping[Start, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The members with the judge's states, what to remember, which servers to try, and which to restart and why."""

    members: tuple[Member, ...]
    standings: Mapping[str, Standing]
    to_try: tuple[str, ...] = ()
    to_restart: Mapping[str, str] = field(default_factory=dict)


def judge(
    members: Iterable[Member],
    standings: Mapping[str, Standing],
    seen: Seen,
    *,
    rules: MonitorSection,
    trials: bool,
    now: float,
) -> Verdict:
    """Return the verdict on `members`, whose states come from `reconcile`; `trials` says whether servers can be tried.

    Grows linearly with the servers.
    """
    members = tuple(members)
    answering = {member.name for member in members if member.state == "ready"}
    after = {member.name: _noted(member, standings.get(member.name), seen, rules, now) for member in members}
    if not trials:
        after = {name: replace(one, passed=True) for name, one in after.items()}
    if rules.eject:
        after |= _ejected(after, answering, rules, now)
    after = {name: _returned(one, trials, now) if name in answering else one for name, one in after.items()}
    someone_passed = any(after[name].passed for name in answering)
    judged = tuple(
        _seated(member, after[member.name], someone_passed) if member.name in answering else member
        for member in members
    )
    sick = {member.name: _sick(member, after[member.name], rules, now) for member in judged}
    to_restart = {name: why for name, why in sick.items() if why}
    return Verdict(
        members=judged,
        standings={
            name: replace(one, since=now) if name in to_restart else one for name, one in _since(after, judged, now)
        },
        to_try=tuple(name for name in sorted(answering) if trials and _wants_trial(after[name], now)),
        to_restart=to_restart,
    )


def _noted(member: Member, before: Standing | None, seen: Seen, rules: MonitorSection, now: float) -> Standing:
    """Return the standing with what was seen of this start of the server."""
    one = before if before is not None and before.starts == member.record.starts else None
    one = one or Standing(starts=member.record.starts, since=now)
    if member.name in seen.samples:
        one = _sampled(one, seen.samples[member.name], rules, now)
    ended = seen.trials.get(start_of(member))
    if ended is None:
        return one
    if not ended:
        return replace(one, passed=True, trial_fault="", trials_failed=0, fault="", samples=one.samples[-1:], moved={})
    failed = one.trials_failed + 1
    pause = min(2.0**failed, rules.eject_time) if not one.passed else _pause(one.ejections + failed, rules)
    return replace(one, trial_fault=ended, trials_failed=failed, until=now + pause)


def _sampled(one: Standing, sample: Mapping[str, Work], rules: MonitorSection, now: float) -> Standing:
    last = one.samples[-1][1] if one.samples else {}
    moved = {
        model: one.moved.get(model, now) if work.pending and work.ended == last.get(model, Work()).ended else now
        for model, work in sample.items()
    }
    kept = tuple(old for old in one.samples if now - old[0] <= rules.window)
    return replace(one, samples=(*kept, (now, sample)), moved=moved)


def _pause(times: int, rules: MonitorSection) -> float:
    return min(rules.eject_time * max(1, times), rules.eject_time_max)


def _ejected(
    standings: Mapping[str, Standing], answering: set[str], rules: MonitorSection, now: float
) -> dict[str, Standing]:
    """Return the standings of the servers to eject: the worst outliers, but never the last third."""
    serving = {name: standings[name] for name in answering if standings[name].passed and not standings[name].fault}
    room = len(answering) * 2 // 3 - (len(answering) - len(serving))  # a server without a passed trial is out, too
    found = sorted(_outliers(serving, rules, now).items(), key=lambda item: (-item[1][0], item[0]))
    out = {}
    for name, (_, fault) in found[: max(0, room)]:
        times = serving[name].ejections + 1
        out[name] = replace(
            serving[name], fault=fault, ejections=times, until=now + _pause(times, rules), since=now, trials_failed=0
        )
    return out


def _outliers(serving: Mapping[str, Standing], rules: MonitorSection, now: float) -> dict[str, tuple[float, str]]:
    """Return the weight and the fault of each outlier among the servers."""
    windows = {name: one.window for name, one in serving.items()}
    found: dict[str, tuple[float, str]] = {}
    by_model: dict[str, dict[str, Work]] = {}
    for name, window in windows.items():
        for model, work in window.items():
            by_model.setdefault(model, {})[name] = work
    for model, works in by_model.items():
        best, usual, total = (
            _best_of(works.values(), rules),
            _usual_latency(works.values()),
            sum(works.values(), Work()),
        )
        for name, work in works.items():
            fault = _failing(work, best, rules) or _slow(work, usual, rules)
            fault = fault or _stalled(now - serving[name].moved.get(model, now), work, total, rules)
            if fault and fault[0] > found.get(name, (0.0, ""))[0]:
                found[name] = (fault[0], f"{model}: {fault[1]}" if model else fault[1])
    return found


def _best_of(works: Iterable[Work], rules: MonitorSection) -> Work:
    """Return the work of the best third of the servers, which is never ejected: most of the others may be sick."""
    counting = sorted(
        (work for work in works if work.ended >= rules.min_requests), key=lambda work: work.failures / work.ended
    )
    return sum(counting[: -(-len(counting) // 3)], Work())


def _failing(work: Work, others: Work, rules: MonitorSection) -> tuple[float, str] | None:
    """Return the fault of a server whose share of failures is far above that of the best ones."""
    if work.ended < rules.min_requests or not others.ended:
        return None
    share, usual = work.failures / work.ended, others.failures / others.ended
    pooled = (work.failures + others.failures) / (work.ended + others.ended)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / work.ended + 1 / others.ended))
    if share - usual < rules.failure_share or share - usual < _NO_ACCIDENT * spread:
        return None
    return share, f"{work.failures} of {work.ended} requests failed, at other servers {usual:.0%}"


def _usual_latency(works: Iterable[Work]) -> float:
    """Return the median of the servers' mean latencies in seconds, of two the lower; 0 without enough requests."""
    means = [work.seconds / work.successes for work in works if work.successes >= _ENOUGH]
    return statistics.median_low(means) if means else 0.0


def _slow(work: Work, usual: float, rules: MonitorSection) -> tuple[float, str] | None:
    """Return the fault of a server that takes many times as long as usual."""
    if work.successes < _ENOUGH or not rules.slow_factor:
        return None
    mine = work.seconds / work.successes
    if mine < _SLOW or mine <= rules.slow_factor * usual:
        return None
    return 1.0, f"a request takes {mine:.2g} s, at other servers {usual:.2g} s"


def _stalled(still: float, work: Work, total: Work, rules: MonitorSection) -> tuple[float, str] | None:
    """Return the fault of a server whose requests wait while the others answer theirs."""
    if not rules.stall or not work.pending or work.ended or total.successes < _ENOUGH:
        return None
    if still < max(rules.stall, 5 * total.seconds / total.successes):
        return None
    return 1.0, f"{work.pending} requests wait, and none ended for {still:.0f} s"


def _returned(one: Standing, trials: bool, now: float) -> Standing:
    """Return the standing of a server whose ejection is over, where no trial decides that."""
    if one.fault and not trials and now >= one.until:
        return replace(one, fault="", samples=one.samples[-1:], moved={})
    return one


def _wants_trial(one: Standing, now: float) -> bool:
    return (not one.passed or bool(one.fault)) and now >= one.until


def _seated(member: Member, one: Standing, someone_passed: bool) -> Member:
    """Return the member with its place: a failed trial counts only if it is the server's own fault.

    If no server passes, the trial may be what is wrong, and the servers take requests.
    """
    if one.fault:
        more = f"; its trial failed: {one.trial_fault}" if one.trial_fault else ""
        return replace(member, state="ejected", note=f"{one.fault}{more}")
    if one.passed:
        return member
    if not one.trial_fault:
        return replace(member, state="starting", note="answers; a first inference is tried")
    if not someone_passed and one.trials_failed >= _TRIALS:
        return replace(member, note=f"answers, although no server passes a trial: {one.trial_fault}")
    return replace(member, state="ejected", note=f"its trial failed: {one.trial_fault}")


def _sick(member: Member, one: Standing, rules: MonitorSection, now: float) -> str:
    """Return why the server should be restarted, or ''."""
    if member.record.state != "starting" or one.since is None:
        return ""
    if member.state in ("ejected", "gone") and rules.sick_after and now - one.since >= rules.sick_after:
        return member.note
    if member.state == "starting" and rules.start_within and now - one.since >= rules.start_within:
        return f"not ready after {rules.start_within:g} s"
    return ""


def _since(standings: Mapping[str, Standing], members: Iterable[Member], now: float) -> Iterable[tuple[str, Standing]]:
    """Yield the standings with the begin of what a server is in now; None while it serves."""
    for member in members:
        one = standings[member.name]
        if member.state == "ready":
            yield member.name, replace(one, since=None)
        else:
            yield member.name, one if one.since is not None else replace(one, since=now)
