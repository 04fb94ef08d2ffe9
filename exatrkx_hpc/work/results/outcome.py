"""The outcome of one event: a result on disk, or a failure with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from exatrkx_hpc.work.results.parts import Part

_FOR_ITSELF: Final = frozenset({"input", "model", "worker"})


@dataclass(frozen=True, kw_only=True)
class Result:
    """An event whose result is on disk, or in a worker that writes many into one part.

    `items` is what the event counts (hits), `counts` what its result counts (tracks). `seconds` is from the first
    attempt of its request to the result, `retries` how often the request was repeated. `member` is the server that
    answered, and `version` the model's version, as far as the answer says. `stages` are the seconds of each stage by
    its name, none unless the stages were asked one by one. `size` and `mtime_ns` are the event file's when it was read,
    `sha256` the digest (hexadecimal) of what was read; `result_size` and `result_sha256` are the result file's, None
    and nothing while the result waits for a part.
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

    The kinds are `input` (its content), `file` (its file could not be read), `model` (the model refused it, or
    answered nonsense), `endpoint` (nothing useful answered in time) and `worker` (its worker died each time).
    """

    event: str
    kind: str
    reason: str

    @property
    def for_itself(self) -> bool:
        """Whether it would fail again: then it is put into quarantine, and the next run passes over it."""
        return self.kind in _FOR_ITSELF


def read_answer(line: bytes) -> Result | Failed | Part:
    """Return what a worker's line says of an event, or of a part that is on disk."""
    fields = json.loads(line)
    if "events" in fields:
        return Part(**fields)
    if "kind" in fields:
        return Failed(event=fields["name"], kind=fields["kind"], reason=fields["reason"])
    return Result(**fields)
