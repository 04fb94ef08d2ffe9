"""The table of the commands. A command is imported when it is used, because all of them together take a second."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, cast

import typer
import typer.core
import typer.main

#: The module below `exatrkx_hpc.cli` and the name within it: a function, or the Typer app of a group of commands.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "demo": ("demo_command", "demo"),
    "init": ("config_commands", "init"),
    "deploy": ("farm_commands", "deploy"),
    "monitor": ("farm_commands", "monitor"),
    "run-clients": ("work_commands", "run_clients"),
    "report": ("report_command", "report"),
    "metrics": ("work_commands", "metrics"),
    "score": ("score_commands", "score"),
    "bench": ("bench_commands", "bench"),
    "plot": ("bench_commands", "plot"),
    "stop": ("farm_commands", "stop"),
    "status": ("site_commands", "status"),
    "logs": ("site_commands", "logs"),
    "setup": ("site_commands", "setup"),
    "doctor": ("site_commands", "doctor"),
    "clean": ("site_commands", "clean"),
    "config": ("config_commands", "config_app"),
    "models": ("model_commands", "models_app"),
    "events": ("event_commands", "events_app"),
    "workload": ("workload_commands", "workload_app"),
}


#: How every app of the program prints: plain help texts; errors go to main().
PLAIN: Final[Mapping[str, Any]] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class _Table(Mapping[str, object]):
    """The commands by name. A command is made when it is looked up."""

    def __getitem__(self, name: str) -> object:
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _command(name: str) -> object:
    module, attribute = COMMANDS[name]
    what = getattr(importlib.import_module(f"exatrkx_hpc.cli.{module}"), attribute)
    app = typer.Typer(**PLAIN)
    if isinstance(what, typer.Typer):
        app.add_typer(what, name=name)
        return typer.main.get_group(app).commands[name]
    app.command(name=name)(what)
    return typer.main.get_command(app)


class Commands(typer.core.TyperGroup):
    """The program's commands."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - Typer's own settings
        super().__init__(**settings)
        self.commands = cast(Any, _Table())

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names in the order of the table; no command is imported."""
        return list(COMMANDS)
