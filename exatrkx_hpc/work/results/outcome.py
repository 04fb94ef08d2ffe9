"""What a worker says of one event: a result on disk, a failure, an unanswered delivery, or a retry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from exatrkx_hpc.work.results.parts import Part

_FOR_ITSELF: Final = frozenset({"input", "model", "worker", "poison"})


@dataclass(frozen=True, kw_only=True)
class Result:
    """An event whose result is on disk, or in the memory of a worker that writes many results into one part.

    `items` is the number of items in the event (hits), `counts` the counts of its result (tracks). `seconds` is the
    time from the first attempt of the last delivery to the result, `retries` the number of retries. `member` is the
    server that answered and `version` the version of its model, if the answer has them. `stages` has the seconds of
    each stage by name; it is empty unless the stages were requested one by one. `size` and `mtime_ns` are those of the
    event file when it was read, `sha256` is the digest (hexadecimal) of the content. `result_size` (bytes) and
    `result_sha256` are those of the result file; None and empty while the result waits for its part.
    """

    name: str
    items: int
    seconds: float
    retries: int
    size: int
    mtime_ns: int
    sha256: str
    result_size: int | None
    result_sha256: str
    member: str = ""
    version: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An event without a result: its name, the kind of failure and the reason, one line.

    The kinds are `input` (invalid content), `file` (file not readable), `model` (the model refused the event or sent
    an invalid answer; two servers say so, where there are two), `poison` (it costs a server at each delivery),
    `endpoint` (no valid answer in time) and `worker` (its worker died each time). A worker also reports `output`
    (result not writable) and `access` (the endpoint refuses the token or the call), which end the run.
    """

    event: str
    kind: str
    reason: str

    @property
    def for_itself(self) -> bool:
        """Whether the event would fail again: then it goes into quarantine, and the next run skips it."""
        return self.kind in _FOR_ITSELF


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """A delivery that was not answered well, by whose fault is not decided: its cause, its server if known, the reason.

    `cause` is a value of `exatrkx_hpc.work.inference.retry.Cause`.
    """

    event: str
    cause: str
    member: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A delivery that a server had and did not answer: its server (empty if unknown), its cause, its time.

    `at` is in seconds since 1970. `alone` is whether no other event of the run was in flight.
    """

    member: str
    cause: str
    at: float
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A request of an event that no server has taken yet, and that is sent again; `reason` says why."""

    event: str
    reason: str


Answered: TypeAlias = "Result | Failed | Undecided | Retried | Part"


def read_answer(line: bytes) -> Answered:
    """Parse one line of a worker: the outcome of an event or of a delivery, a retry, or a part on disk."""
    fields = json.loads(line)
    if "events" in fields:
        return Part(**fields)
    if "retry" in fields:
        return Retried(event=fields["name"], reason=fields["retry"])
    if "cause" in fields:
        return Undecided(event=fields["name"], cause=fields["cause"], member=fields["member"], reason=fields["reason"])
    if "kind" in fields:
        return Failed(event=fields["name"], kind=fields["kind"], reason=fields["reason"])
    return Result(**fields)
