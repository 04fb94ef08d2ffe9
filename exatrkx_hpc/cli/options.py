"""The options that several commands share, and how they become flags of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exatrkx_hpc.config.resolve import Resolved, resolve
from exatrkx_hpc.config.values import Engine

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file (default: ./farm.toml, if it exists).")
]
SiteName = Annotated[
    str | None, typer.Option("--site", help="Site profile: perlmutter, generic or local (default: site).")
]
EngineName = Annotated[Engine | None, typer.Option("--engine", help="Container engine (default: server.engine).")]
RunRoot = Annotated[
    str | None, typer.Option("--run-root", help="Directory that holds the run directories (default: run_root).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print each change as one JSON object per line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not print progress.")]


def resolved(config: Path | None = None, /, **flags: object) -> Resolved:
    """Return the configuration; `section__key` names a flag's value, and None means that it was not given."""
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    if isinstance(folder := given.get("run_root"), str):
        given["run_root"] = folder.replace("$", "$$")  # the shell has filled in its variables already
    return resolve(config, flags=given)


def say(line: str) -> None:
    """Print one line of progress on stderr; results alone go to stdout."""
    typer.echo(line, err=True)


def console() -> Console:
    """Return the console for results on stdout; a file or a pipe gets lines as long as they need to be."""
    made = Console(highlight=False, markup=False)
    return made if made.is_terminal else Console(highlight=False, markup=False, width=200)
