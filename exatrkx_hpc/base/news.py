"""News: what happened, as values that become lines for people and JSON for programs."""

from __future__ import annotations

import contextlib
import json
import time as clock
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, TypeAlias

from pydantic import TypeAdapter, ValidationError

from exatrkx_hpc.base.readable import moment


class Level(str, Enum):
    """The severity of news; DEBUG is for programs only."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class News(ABC):
    """Something that happened at `time`, in seconds since 1970; `job` is empty if no job is concerned.

    Each subclass has its own `code`, which never changes, and fields that JSON can represent. No field is called
    `code`, `level` or `message`. `usual` is the default level of the class.
    """

    code: ClassVar[str]
    usual: ClassVar[Level] = Level.INFO
    job: str = ""
    time: float = field(default_factory=clock.time)

    @property
    def level(self) -> Level:
        """The severity: the default of the class, unless a subclass derives it from the fields."""
        return self.usual

    @abstractmethod
    def __str__(self) -> str:
        """Return one line for people, without the time."""

    def as_dict(self) -> dict[str, Any]:
        """Return the news as JSON values: code, level, time, job, the class's fields, and the line as `message`."""
        fields = TypeAdapter(type(self)).dump_python(self, mode="json")
        first = {"code": self.code, "level": self.level.value, "time": self.time, "job": self.job}
        return {**first, **fields, "message": str(self)}

    def as_json(self) -> str:
        """Return the news as one line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    def as_line(self) -> str:
        """Return one line for people, with the local time in front."""
        return f"{moment(self.time)} {self}"


#: A function that receives news, in the thread in which the change happens; it must not raise.
Tell: TypeAlias = Callable[[News], None]


def untold(news: News) -> None:
    """Ignore the news."""


def unfailing(tell: Tell) -> Tell:
    """Return a listener that passes news to `tell` and ignores its errors: its terminal is closed, its disk full."""

    def safe(news: News) -> None:
        with contextlib.suppress(Exception):
            tell(news)

    return safe


@dataclass(frozen=True, kw_only=True)
class Words(News):
    """News with only a line for people."""

    text: str

    def __str__(self) -> str:
        """Return the line."""
        return self.text


def of_job(job: str, tell: Tell) -> Tell:
    """Return a listener that passes all news to `tell`, with `job` set."""
    return lambda news: tell(replace(news, job=job))


def kinds(root: type[News] = News) -> Iterator[type[News]]:
    """Yield every news class of the imported modules."""
    for kind in root.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from kinds(kind)


def from_json(line: str) -> News:
    """Return the news of a line of `as_json`; the module of its class must be imported.

    Raises ValueError for any other line.
    """
    told = json.loads(line)
    code = told.get("code") if isinstance(told, dict) else None
    kind = next((kind for kind in kinds() if kind.code == code), None)
    if kind is None:
        raise ValueError(f"no news has the code {code!r}")
    fields = {name: value for name, value in told.items() if name not in ("code", "level", "message")}
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        raise ValueError(f"this is no {code!r}: {error}") from error
