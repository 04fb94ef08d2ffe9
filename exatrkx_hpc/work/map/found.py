"""Input and output of a map: a named event, and its outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from exatrkx_hpc.base.errors import ExatrkxError, InputError
from exatrkx_hpc.work.events.source import EventInput
from exatrkx_hpc.work.inference.client import Answer
from exatrkx_hpc.work.workloads.base import Tensors, Workload, single
from exatrkx_hpc.work.workloads.given import Given, as_tensors
from exatrkx_hpc.work.workloads.watch import Watch

NamedEvents: TypeAlias = "Mapping[str, Given] | Iterable[tuple[str, Given]]"
"""Events with names: a mapping of names to events, or pairs of the two; see `given.Given`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The outcome of one named event: its `answer` or its `error`; the other one is None.

    `answer` has the outputs, `seconds`, `retries`, `member` and `version`. `before` is true if the outcome is from the
    ledger of an earlier call.
    """

    name: str
    answer: Answer | None = None
    error: ExatrkxError | None = None
    before: bool = False

    @property
    def result(self) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
        """The output if the workload has one, else all outputs by name; raises the event's error if it failed."""
        if self.answer is None:
            raise self.error or ExatrkxError(f"{self.name} has no result")
        return single(self.answer.outputs)

    @property
    def labels(self) -> Any:  # noqa: ANN401 - as above
        """Another name of `result` for track finding: the label of each hit, int64 `[N]`."""
        return self.result


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """One event that a map has read: its tensors and their SHA-256, or its `error`."""

    name: str
    tensors: Tensors = field(default_factory=dict)
    error: InputError | None = None
    sha256: bytes = b""

    @property
    def size(self) -> int:
        """The size of the tensors, in bytes."""
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def content(self) -> EventInput:
        """The event as if read from a file; `mtime_ns` is 0 because there is no file."""
        return EventInput(tensors=self.tensors, size=self.size, mtime_ns=0, sha256=self.sha256.hex())


def is_named(event: object) -> bool:
    """Return whether this is a pair (name, event); an event without a name never begins with a string."""
    return isinstance(event, tuple) and len(event) == 2 and isinstance(event[0], str)


def read_event(workload: Workload, name: str, given: Given, *, digest: bool, watch: Watch) -> Event:
    """Return the event with a copy of its tensors, because the caller may reuse its arrays.

    An invalid event has an `error` and no tensors. `digest` computes the SHA-256 for a ledger; `watch` checks units.
    """
    try:
        own = {key: np.array(array) for key, array in as_tensors(workload, given).items()}
    except InputError as error:
        return Event(name=name, error=error)
    watch.look(own)
    return Event(name=name, tensors=own, sha256=_digest(own) if digest else b"")


def _digest(tensors: Tensors) -> bytes:
    whole = hashlib.sha256()
    for array in tensors.values():
        whole.update(array.tobytes())
    return whole.digest()
