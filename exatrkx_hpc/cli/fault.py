"""Errors as JSON, and faults of this program: one line for the user, and a report file for its developers."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from exatrkx_hpc import __version__

#: EX_SOFTWARE of sysexits.h.
EXIT_CODE = 70
#: Packages whose versions are in a report if they are loaded; importing one now might fail, too.
_PACKAGES = ("tritonclient", "grpc", "numpy", "pydantic", "typer", "torch")
_SECRET = re.compile(r"token|passw|secret|credential|api-?_?key", re.IGNORECASE)
_HIDDEN = "***"


def error_json(line: str, *, kind: str, code: int) -> str:
    """Return an error as one line of JSON: `{"error": {"kind", "message", "next", "exit_code"}}`.

    `kind` is the class of the error; `next` is what to do, the part of `line` after its last semicolon.
    """
    message, semicolon, step = line.rpartition("; ")
    told = {"kind": kind, "message": message if semicolon else line, "next": step if semicolon else ""}
    return json.dumps({"error": {**told, "exit_code": code}}, ensure_ascii=False)


def usage_error(error: BaseException) -> str | None:
    """Return the message of a usage error of Typer, such as an unknown option; None for another error.

    Its class is not public, and is another one in each release of Typer.
    """
    say = getattr(error, "format_message", None)
    return f"{say()}; see --help" if callable(say) and hasattr(error, "exit_code") else None


def fault_line(error: BaseException, argv: Sequence[str]) -> str:
    """Write the report of a fault and return the line for the user, which names the report file.

    If no file can be written, the report goes to stderr.
    """
    report = fault_report(error, argv)
    said = hidden("".join(traceback.format_exception_only(error)).strip().partition("\n")[0], argv)
    what = f"a fault of this program, not of yours ({said[:200]})"
    try:
        file = _written(report)
    except OSError:
        sys.stderr.write(report)
        return f"{what}; no report could be written, attach the lines above to a bug report"
    return f"{what}; attach {file} to a bug report"


def fault_report(error: BaseException, argv: Sequence[str]) -> str:
    """Return the report of a fault: time, versions, the command line without secrets, and the traceback.

    The report has no environment variables and no files, but the error message may quote them.
    """
    facts = [
        "exatrkx-hpc: report of a fault. Read it before you send it: it has paths and names of this machine.",
        "",
        f"time: {time.strftime('%Y-%m-%dT%H:%M:%S%z')}",
        f"command: {' '.join(map(repr, shown(argv)))}",
        *(f"{name}: {version}" for name, version in _versions()),
        "",
    ]
    return hidden("\n".join([*facts, "".join(traceback.format_exception(error))]), argv)


def shown(argv: Sequence[str]) -> list[str]:
    """Return the command line with the value of each option or key that names a secret hidden."""
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, _ = word.partition("=")
        if _takes_a_secret(before):
            words.append(_HIDDEN)
        elif equals and _names_a_secret(name):
            words.append(f"{name}={_HIDDEN}")
        else:
            words.append(hidden(word, argv))
    return words


def hidden(text: str, argv: Sequence[str]) -> str:
    """Return `text` without the secrets of a command line, and without user and password in URLs."""
    for secret in sorted(_secrets(argv), key=len, reverse=True):
        if len(secret) > 3:  # replacing a shorter one would damage other words
            text = text.replace(secret, _HIDDEN).replace(repr(secret)[1:-1], _HIDDEN)
    return re.sub(r"(?<=://)[^@\s'\"]+(?=@)", _HIDDEN, text)


def _secrets(argv: Sequence[str]) -> Iterator[str]:
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, value = word.partition("=")
        if _takes_a_secret(before):
            yield word
        elif equals and _names_a_secret(name):
            yield value


def _names_a_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and os.sep not in name


def _takes_a_secret(option: str) -> bool:
    """Return whether the next word is the secret value of `option`, even if that word starts with a dash."""
    return option.startswith("-") and not option.startswith("--no-") and "=" not in option and _names_a_secret(option)


def _versions() -> Iterator[tuple[str, str]]:
    yield "exatrkx-hpc", __version__
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for name in _PACKAGES:
        if (module := sys.modules.get(name)) is not None:
            yield name, _version(name, module)


def _version(name: str, module: ModuleType) -> str:
    from importlib import metadata

    try:
        return str(getattr(module, "__version__", None) or metadata.version(name))
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _written(report: str) -> Path:
    """Write the report to a file that only its user can read, and return the path; raises OSError on failure."""
    name = {"prefix": time.strftime("fault-%Y%m%d-%H%M%S-"), "suffix": ".txt"}
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "exatrkx-hpc")
    try:
        folder = folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _write(report, str(folder), **name)
    except (OSError, RuntimeError):  # no home or a full quota; the temporary folder is usually on another disk
        return _write(report, tempfile.gettempdir(), **{**name, "prefix": f"exatrkx-hpc-{name['prefix']}"})


def _write(report: str, folder: str, *, prefix: str, suffix: str) -> Path:
    handle, path = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=suffix)  # mkstemp uses mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(report)
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)
