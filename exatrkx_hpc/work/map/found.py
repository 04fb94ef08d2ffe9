"""What goes into a map and what comes out of it: a named event, and what became of it."""

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
    """What became of one named event: its `answer`, or the `error` that it met; one of the two is None.

    `answer` has the outputs and how they were got (`seconds`, `retries`, `member`, `version`). `before` is whether an
    earlier call had done this event, and the ledger has told it.
    """

    name: str
    answer: Answer | None = None
    error: ExatrkxError | None = None
    before: bool = False

    @property
    def result(self) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
        """The output where the workload has one, else all by name; raises the event's error when it has none."""
        if self.answer is None:
            raise self.error or ExatrkxError(f"{self.name} has no result")
        return single(self.answer.outputs)

    @property
    def labels(self) -> Any:  # noqa: ANN401 - as above
        """The same by the word of track finding: the label of each hit, int64 `[N]`."""
        return self.result


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """One event as a map reads it: its tensors and their digest; or what is wrong with it."""

    name: str
    tensors: Tensors = field(default_factory=dict)
    error: InputError | None = None
    sha256: bytes = b""

    @property
    def size(self) -> int:
        """The bytes of its tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def content(self) -> EventInput:
        """The event as if it had been read from a file, whose moment is not known."""
        return EventInput(tensors=self.tensors, size=self.size, mtime_ns=0, sha256=self.sha256.hex())


def is_named(event: object) -> bool:
    """Say whether this is a pair of a name and an event: an event alone never begins with a text."""
    return isinstance(event, tuple) and len(event) == 2 and isinstance(event[0], str)


def read_event(workload: Workload, name: str, given: Given, *, digest: bool, watch: Watch) -> Event:
    """Return the event with a copy of its tensors, as its arrays may be used again; `digest` is for a ledger.

    `watch` looks at their units.
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
