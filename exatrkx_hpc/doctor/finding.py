"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exatrkx_hpc.base.errors import ExatrkxError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check: what was checked, whether it is ok, what was found, and the remedy if it is not.

    A finding that is ok and has a remedy is a warning: the farm works without this thing.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""


def asked(what: str, question: Callable[[], str]) -> Finding:
    """Return the finding of a check: the answer of `question`, or its ExatrkxError, whose message has the remedy."""
    try:
        return Finding(what=what, ok=True, found=question())
    except ExatrkxError as error:
        return refused(what, str(error))


def refused(what: str, line: str) -> Finding:
    """Return a failed finding from a message: the fault, then `; `, then the remedy."""
    found, _, remedy = line.partition("; ")
    return Finding(what=what, ok=False, found=found, remedy=remedy)
