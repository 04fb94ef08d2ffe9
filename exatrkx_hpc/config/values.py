"""The value types of farm.toml, each validated on input."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from exatrkx_hpc.config.engines import ENGINES

#: The inference modes: one request to the ensemble, one per stage, one to the fused model, no server.
Mode = Literal["ensemble", "stages", "fused", "direct"]
#: The formats of labels: one CSV file per event, or Parquet files with many events each.
LabelFormat = Literal["csv", "parquet"]
Seconds = Annotated[float, Field(gt=0, le=86400)]

#: The value that means the user's own port, which ports.user_port computes.
USER = "user"
#: The value that means a number which fits the machine.
AUTO = "auto"

_TIME_LIMIT = re.compile(r"([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}")
#: Slurm may send the signal up to this many seconds earlier than requested (sbatch's manual; seen with 22.05).
EARLY_SIGNAL = 60
#: The lead time of a signal without `@SECONDS`, in seconds (sbatch's manual).
_DEFAULT_LEAD = 60
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]*")
#: Control characters, the two line breaks of Unicode, and bytes of the environment that are not UTF-8.
_NOT_IN_A_LINE = {"Cc", "Zl", "Zp", "Cs"}


def _without_breaks(text: str) -> str:
    if any(unicodedata.category(character) in _NOT_IN_A_LINE for character in text):
        raise ValueError("must not contain a line break or a control character")
    return text


def _port_or_user(value: object) -> object:
    if value == USER:
        return value
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(number, int) or not 0 <= number <= 65535:
        raise ValueError(f"must be a port from 0 to 65535, or {USER!r}")
    return number


def _time_limit(text: str) -> str:
    if not _TIME_LIMIT.fullmatch(text):
        raise ValueError("must be a Slurm time limit such as 30, 02:00:00 or 1-12:00:00")
    return text


def limit_seconds(limit: str) -> float:
    """Return the seconds of a Slurm time limit: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; inf for 0, no limit."""
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return float(total) or math.inf


def signal_lead(signal: str, *, drains: bool = False) -> int | None:
    """Return the lead time, in seconds, of a SignalSpec before the time limit.

    None unless it sends SIGTERM, SIGUSR2 or SIGUSR1, which end the servers, to the batch script. With `drains` also
    None for SIGUSR1, which ends them at once.
    """
    names = "TERM|USR2|15|12" if drains else "TERM|USR2|USR1|15|12|10"
    match = re.fullmatch(rf"[BR]*B[BR]*:(?:SIG)?(?:{names})(?:@(\d+))?", signal)
    return int(match[1] or _DEFAULT_LEAD) if match else None


def known_engine(text: str) -> str:
    """Return `text` if it names a container engine; raises ValueError otherwise."""
    if text not in ENGINES:
        *names, last = map(repr, ENGINES)
        raise ValueError(f"input should be {', '.join(names)} or {last}")
    return text


def _servers(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _number_or_share(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}|([1-9][0-9]?|100)%", text):
        raise ValueError("must be a number of servers from 1, or a share from 1% to 100%")
    return text


def least_ready(min_ready: str, servers: int) -> int:
    """Return how many of `servers` servers a number or share (`MinReady`) asks for: at least 1, at most all."""
    share = min_ready.endswith("%")
    wanted = math.ceil(int(min_ready[:-1]) * servers / 100) if share else int(min_ready)
    return max(1, min(wanted, servers))


def _memory(text: str) -> str:
    if text and not re.fullmatch(r"[0-9]+[KMGT]?", text):
        raise ValueError("must be an amount of memory such as 4000M or 64G")
    return text


def _signal(text: str) -> str:
    if text and not re.fullmatch(r"([BR]{1,2}:)?[A-Z0-9]+(@[0-9]{1,5})?", text):
        raise ValueError("must be a Slurm signal such as B:TERM@120")
    return text


def _plain_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("must consist of letters, digits, '.', '_' and '-'")
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be the name of an environment variable: letters, digits and '_'")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("must be a host's name or address, or a part of one")
    return text


def _options(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"{word!r} must be a long option such as --reservation=NAME")
    return words


def _folder(text: str) -> str:
    folder = str(expand(text)) if text else ""
    if ":" in folder:
        raise ValueError("must not contain ':', which separates folders in PYTHONPATH and in container mounts")
    return _without_breaks(folder)


def _mount(text: str) -> str:
    source, _, target = text.partition(":")
    source = _folder(source)
    target = _folder(target) if target else source
    if not source:
        raise ValueError("must be a folder, or FOLDER:PLACE_IN_THE_CONTAINER")
    return f"{source}:{target}"


def expand(folder: str) -> Path:
    """Return `folder` as an absolute path with a leading `~` and `$NAME` expanded; `$$` is a plain `$`.

    Raises ValueError for an unset variable or the home of an unknown user.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"{folder!r} uses ${name}, which is not set; set it, or write the full path")
        return os.environ[name]

    filled = re.sub(r"\$\$|\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}", value, folder)
    try:
        return Path(filled).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{folder!r} begins with the home of an unknown user; write the full path") from error


def _count_or_auto(value: object) -> object:
    if value == AUTO:
        return value
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(number, int) or not 1 <= number <= 128:
        raise ValueError(f"must be a number from 1 to 128, or {AUTO!r}")
    return number


#: A port, 0 for any free port, or `user` for the user's own port.
UserPort = Annotated[int | Literal["user"], BeforeValidator(_port_or_user)]
#: A number of processes, or `auto` for one that fits the machine.
Processes = Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)]
Line = Annotated[str, AfterValidator(_without_breaks)]
Name = Annotated[str, AfterValidator(_plain_name)]
#: The values of `server.engine`.
Engine = Annotated[str, AfterValidator(known_engine), Field(json_schema_extra={"enum": list(ENGINES)})]
Variable = Annotated[str, AfterValidator(_variable)]
Host = Annotated[str, AfterValidator(_host)]
#: Expanded once, so that later code sees plain absolute paths.
Folder = Annotated[str, AfterValidator(_folder)]
#: A folder of the host and its place in a container, `SOURCE:TARGET`, both absolute.
Mount = Annotated[str, AfterValidator(_mount)]
#: Options of sbatch, each one word.
Options = Annotated[tuple[Line, ...], AfterValidator(_options)]
TimeLimit = Annotated[str, AfterValidator(_time_limit)]
#: A number of servers, or a share such as `90%`.
MinReady = Annotated[str, BeforeValidator(_servers), AfterValidator(_number_or_share)]
Memory = Annotated[str, AfterValidator(_memory)]
SignalSpec = Annotated[str, AfterValidator(_signal)]
