"""The mark of an output folder: OUT/.owner.json says which program writes here.

Files without a mark are of others: they are never removed or replaced. A run takes a folder, and marks it, only if
nothing is where its results would go.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.files import write_new

NAME: Final = ".owner.json"
"""The name of the mark in OUT."""

_PROGRAM: Final = "exatrkx-hpc"
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What a mark says: the program and its version, the first `run` (a unique name), and when it took the folder."""

    program: str
    version: str
    run: str
    taken: str


def read_owner(out: Path) -> Owner | None:
    """Return the owner of OUT, None without a mark; raises OutputError for a mark that is damaged or of another."""
    path = out / NAME
    try:
        owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}; choose another -o") from error
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} does not say who owns {out} ({error}); choose another -o") from error
    if owner.program != _PROGRAM:
        raise OutputError(f"{out} belongs to {owner.program} ({path}); choose another -o")
    return owner


def mark(out: Path) -> None:
    """Mark OUT as ours, unless it is marked already; raises OSError."""
    taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    owner = Owner(program=_PROGRAM, version=__version__, run=uuid.uuid4().hex, taken=taken)
    if read_owner(out) is None:
        try:
            write_new(out / NAME, json.dumps(asdict(owner), indent=2) + "\n")
        except FileExistsError:  # two shards of one run
            return


def in_the_way(out: Path, found: Iterator[Path]) -> OutputError:
    """Return the error for files of others; `found` yields at least one of them."""
    first = list(itertools.islice(found, _NAMED))
    names = ", ".join(str(path.relative_to(out)) for path in first) + (", …" if len(first) == _NAMED else "")
    return OutputError(
        f"{out} has files that this program did not write, where its results would go ({names}); move them "
        "elsewhere, or choose another -o"
    )
