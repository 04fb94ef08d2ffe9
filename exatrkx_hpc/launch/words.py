"""Words of a command that a script will run: plain text, and values that only the node knows.

A command stays data until the template; there each word is quoted, once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Var:
    """A shell variable of the script, filled in on the node."""

    name: str


Word: TypeAlias = str | Var | tuple[str | Var, ...]


def sh(word: Word) -> str:
    """Return `word` quoted for bash, so that it stays one word whatever it holds."""
    if isinstance(word, Var):
        return f'"${{{word.name}}}"'
    if isinstance(word, tuple):
        return "".join(sh(part) for part in word)
    return shlex.quote(word)


def directive(value: str) -> str:
    """Return `value` quoted for a #SBATCH line, so that sbatch reads it as one word.

    sbatch knows both kinds of quotes, but to it a backslash escapes between single quotes, too.
    """
    return shlex.quote(value).replace("\\", "\\\\")


def comment(text: str) -> str:
    """Return `text` on one line that a person can read: a line break or another control character is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
