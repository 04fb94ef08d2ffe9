"""News on the terminal: a line with its time for people, or a line of JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import typer

from exatrkx_hpc.base.news import Level, News, Tell, Words, untold


@dataclass(frozen=True, kw_only=True)
class Prompt(Words):
    """A message of a foreground command to its user."""

    code: ClassVar[str] = "terminal-prompt"


def teller(*, as_json: bool = False, quiet: bool = False, results: bool = False) -> Tell:
    """Return a function that prints news on stderr, or on stdout if news are the results of the command (`results`).

    JSON output has all news, text output all except DEBUG.
    """

    def tell(news: News) -> None:
        if as_json:
            typer.echo(news.as_json(), err=not results)
        elif news.level is not Level.DEBUG:
            typer.echo(news.as_line(), err=not results)

    return untold if quiet else tell
