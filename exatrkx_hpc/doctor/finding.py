"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exatrkx_hpc.base.errors import ExatrkxError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the farm needs: its name, whether it is there, what was found, what to do if it is not.

    One that the farm can go without is ok, and has something to do all the same: a warning.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""


def asked(what: str, question: Callable[[], str]) -> Finding:
    """Turn an answer, or the error whose message already says what to do, into a finding."""
    try:
        return Finding(what=what, ok=True, found=question())
    except ExatrkxError as error:
        return refused(what, str(error))


def refused(what: str, line: str) -> Finding:
    """Turn a line that says what is wrong and, after its first semicolon, what to do, into a finding."""
    found, _, remedy = line.partition("; ")
    return Finding(what=what, ok=False, found=found, remedy=remedy)
