"""What goes into a map and what comes out of it: a named event, and what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.base.errors import ExatrkxError, InputError
from exatrkx_hpc.work.events.given_hits import checked_hits
from exatrkx_hpc.work.events.units import Watch
from exatrkx_hpc.work.inference.client import Answer

NamedEvents: TypeAlias = "Mapping[str, ArrayLike] | Iterable[tuple[str, ArrayLike]]"
"""Events with names: a mapping of names to hits `[N, 3]`, or pairs of the two."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What became of one named event: its `answer`, or the `error` that it met; one of the two is None.

    `answer` has the labels and how they were got (`seconds`, `retries`, `member`, `version`). `before` is whether an
    earlier call had done this event, and the ledger has told it.
    """

    name: str
    answer: Answer | None = None
    error: ExatrkxError | None = None
    before: bool = False

    @property
    def labels(self) -> NDArray[np.int64]:
        """The track label of each hit, int64 `[N]`; raises the event's error when it has no labels."""
        if self.answer is None:
            raise self.error or ExatrkxError(f"{self.name} has no labels")
        return self.answer.labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """One event as a map reads it: its hits, float32 `[N, 3]`, and their digest; or what is wrong with it."""

    name: str
    hits: NDArray[np.float32] | None = None
    error: InputError | None = None
    sha256: bytes = b""

    @property
    def size(self) -> int:
        """The bytes of its hits."""
        return 0 if self.hits is None else self.hits.nbytes


def is_named(event: object) -> bool:
    """Say whether this is a pair of a name and hits: hits alone never begin with a text."""
    return isinstance(event, tuple) and len(event) == 2 and isinstance(event[0], str)


def read_hits(name: str, hits: ArrayLike, *, digest: bool, watch: Watch) -> Event:
    """Return the event with a copy of its hits, so that a reader may use its array again; `digest` is for a ledger.

    `watch` looks at their units.
    """
    try:
        own = np.array(checked_hits(hits))
    except InputError as error:
        return Event(name=name, error=error)
    watch.look(own)
    return Event(name=name, hits=own, sha256=hashlib.sha256(own.tobytes()).digest() if digest else b"")
