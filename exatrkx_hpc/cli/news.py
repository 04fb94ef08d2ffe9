"""News on the terminal: a line with its time for people, or a line of JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import typer

from exatrkx_hpc.base.news import Level, News, Tell, Words, untold


@dataclass(frozen=True, kw_only=True)
class Prompt(Words):
    """What a command that keeps the terminal says to the person before it."""

    code: ClassVar[str] = "terminal-prompt"


def teller(*, as_json: bool = False, quiet: bool = False, results: bool = False) -> Tell:
    """Return what prints news: on stderr, or on stdout where news are all that the command has to say (`results`).

    JSON has all news, a person gets what is worth a line.
    """

    def tell(news: News) -> None:
        if as_json:
            typer.echo(news.as_json(), err=not results)
        elif news.level is not Level.DEBUG:
            typer.echo(news.as_line(), err=not results)

    return untold if quiet else tell
