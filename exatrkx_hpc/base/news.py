"""What happened, as values: lines for people and JSON for programs are made from them, in one place."""

from __future__ import annotations

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
    """How much somebody should care; DEBUG is for programs alone."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class News(ABC):
    """Something that happened at `time`, in seconds since 1970, to `job` where it concerns one.

    A subclass has a `code` of its own, which never changes, and fields that JSON can say. No field is called
    `code`, `level` or `message`. `usual` is the level of its kind.
    """

    code: ClassVar[str]
    usual: ClassVar[Level] = Level.INFO
    job: str = ""
    time: float = field(default_factory=clock.time)

    @property
    def level(self) -> Level:
        """How much somebody should care: as of its kind, where the fields do not say otherwise."""
        return self.usual

    @abstractmethod
    def __str__(self) -> str:
        """Return one line for people, without the time."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as what JSON can say: code, level, time, job, the fields of its kind, and the line as `message`."""
        fields = TypeAdapter(type(self)).dump_python(self, mode="json")
        first = {"code": self.code, "level": self.level.value, "time": self.time, "job": self.job}
        return {**first, **fields, "message": str(self)}

    def as_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    def as_line(self) -> str:
        """Return one line for people, which begins with the local time."""
        return f"{moment(self.time)} {self}"


#: Who is told what happens; it is called in the thread in which that happens, and must not raise.
Tell: TypeAlias = Callable[[News], None]


def untold(news: News) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, kw_only=True)
class Words(News):
    """News of a part that has nothing but a line for people to say."""

    text: str

    def __str__(self) -> str:
        """Return the line."""
        return self.text


def of_job(job: str, tell: Tell) -> Tell:
    """Return a listener that tells `tell` the same, as news of `job`."""
    return lambda news: tell(replace(news, job=job))


def kinds(root: type[News] = News) -> Iterator[type[News]]:
    """Yield every kind of news of the modules that are imported."""
    for kind in root.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from kinds(kind)


def from_json(line: str) -> News:
    """Return the news that `as_json` made this line of; its module must be imported.

    Raises ValueError for anything else.
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
