"""`init`, `config show`, `config schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.base.files import write_new
from exatrkx_hpc.cli.options import ConfigFile, Json, SiteName, answer, console, resolved
from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.resolve import DEFAULT_FILE, commented_file, value_of
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import known_engine

config_app = typer.Typer(help="Show the configuration and the source of each value.", no_args_is_help=True)


@config_app.command(epilog="Example: exatrkx-hpc config show --site perlmutter")
def show(config: ConfigFile = None, site: SiteName = None, as_json: Json = False) -> None:
    """Print each value and its source."""
    result = resolved(config, site=site)
    rows = [(key, value_of(result.farm, key), source) for key, source in result.sources.items()]
    if as_json:
        typer.echo(json.dumps({key: {"value": value, "source": source} for key, value, source in rows}, indent=2))
        return
    from rich.table import Table

    table = Table("key", "value", "source")
    for key, value, source in rows:
        table.add_row(key, json.dumps(value), source)
    console().print(table)


@config_app.command(epilog="Example: exatrkx-hpc config schema > farm.schema.json")
def schema(as_json: Json = True) -> None:
    """Print the JSON schema of farm.toml."""
    typer.echo(json.dumps(Farm.model_json_schema(), indent=2))


def init(
    site: Annotated[str, typer.Argument(help="Site profile: perlmutter, generic or local.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path(DEFAULT_FILE),
    account: Annotated[
        str | None, typer.Option("--account", "-A", help="Slurm account to charge (job.account).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="|".join(ENGINES), help="Container engine (default: that of the profile)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented farm.toml for a site.

    An existing file is not overwritten.

    Example: exatrkx-hpc init perlmutter --account m1234_g
    """
    given = {"job.account": account, "server.engine": _checked(engine)}
    chosen = {key: value for key, value in given.items() if value is not None}
    text = commented_file(site, chosen)
    try:
        write_new(out, text)
    except FileExistsError as error:
        raise ConfigError(f"{out} already exists; choose another file with --out") from error
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; check permissions and free space") from error
    line = f"{out} written; edit it, then check the job with 'exatrkx-hpc deploy --dry-run'"
    answer(line, as_json=as_json, file=out, site=site)


def _checked(name: str | None) -> str | None:
    """Return the engine of --engine, if given; raises ConfigError for an unknown one."""
    try:
        return None if name is None else known_engine(name)
    except ValueError as error:
        raise ConfigError(f"--engine: {error} (got {name!r})") from error
