"""Options shared by several commands, and their conversion to flags of the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.resolve import Resolved, resolve


def _engines(incomplete: str) -> list[str]:
    return [name for name in ENGINES if name.startswith(incomplete)]


ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file (default: ./farm.toml, if it exists).")
]
SiteName = Annotated[
    str | None, typer.Option("--site", help="Site profile: perlmutter, generic or local (default: site).")
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="|".join(ENGINES),
        help="Container engine; none: run without a container (default: server.engine).",
        autocompletion=_engines,
    ),
]
RunRoot = Annotated[
    str | None, typer.Option("--run-root", help="Directory that holds the run directories (default: run_root).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print each change as one JSON object per line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not print progress.")]


def resolved(config: Path | None = None, /, **flags: object) -> Resolved:
    """Return the configuration; an argument `section__key` sets `section.key`, and None means not given."""
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    for key in ("run_root", "server.model_repository"):
        if isinstance(folder := given.get(key), str):
            given[key] = folder.replace("$", "$$")  # the shell has already expanded variables
    return resolve(config, flags=given)


def say(line: str) -> None:
    """Print one line of progress on stderr; only results go to stdout."""
    typer.echo(line, err=True)


def answer(line: str, *, as_json: bool, **fields: object) -> None:
    """Print the result of a command on stdout: a line for people, or the fields as one JSON object."""
    typer.echo(json.dumps(fields, default=str) if as_json else line)


def console() -> Console:
    """Return the console for results on stdout; for a file or a pipe, it is 200 columns wide."""
    made = Console(highlight=False, markup=False)
    return made if made.is_terminal else Console(highlight=False, markup=False, width=200)
