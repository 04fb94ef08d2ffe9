"""Words of a command in a script: plain text, and values that only the node knows.

A command stays data until the template quotes each word, once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Var:
    """A shell variable of the script, expanded on the node."""

    name: str


Word: TypeAlias = str | Var | tuple[str | Var, ...]


def sh(word: Word) -> str:
    """Return `word` quoted for bash as a single word."""
    if isinstance(word, Var):
        return f'"${{{word.name}}}"'
    if isinstance(word, tuple):
        return "".join(sh(part) for part in word)
    return shlex.quote(word)


def directive(value: str) -> str:
    """Return `value` quoted for a #SBATCH line, so that sbatch reads it as one word.

    Unlike in a shell, a backslash is an escape for sbatch even between single quotes.
    """
    return shlex.quote(value).replace("\\", "\\\\")


def comment(text: str) -> str:
    """Return `text` on one readable line: line breaks and other control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
