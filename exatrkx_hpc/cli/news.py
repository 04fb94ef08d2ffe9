"""News on the terminal: a line with its time for people, or a line of JSON for programs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

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


#: News that wait for a terminal that is stopped (Ctrl-S) or a reader that is slow; later ones are dropped.
_MOST_WAITING: Final = 10_000
#: Seconds to print the last news.
_LAST_WORDS: Final = 2.0


@contextlib.contextmanager
def not_waiting(tell: Tell) -> Iterator[Tell]:
    """Yield a listener that never waits for `tell`: a thread passes the news on, and ignores errors of the output."""
    waiting: queue.Queue[News | None] = queue.Queue(_MOST_WAITING)

    def take(news: News) -> None:
        with contextlib.suppress(queue.Full):
            waiting.put_nowait(news)

    def pass_on() -> None:
        while (news := waiting.get()) is not None:
            with contextlib.suppress(Exception):  # the terminal is closed, or the disk under the output is full
                tell(news)

    thread = threading.Thread(target=pass_on, name="news", daemon=True)
    thread.start()
    try:
        yield take
    finally:
        with contextlib.suppress(queue.Full):
            waiting.put_nowait(None)
        thread.join(_LAST_WORDS)
