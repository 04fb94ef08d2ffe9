"""The command line: parse the arguments, call the library once, print. Only main() catches errors."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import ConfigError, ExatrkxError, OutputError
from exatrkx_hpc.base.files import full_disk
from exatrkx_hpc.base.signals import unwind_on_stop, unwound
from exatrkx_hpc.cli.commands import PLAIN, Commands
from exatrkx_hpc.cli.fault import EXIT_CODE, error_json, fault_line, usage_error

app = typer.Typer(
    name="exatrkx-hpc",
    cls=Commands,
    help="Turn a Slurm allocation into one Triton endpoint, and push every event of a dataset through it.",
    epilog="Start with 'exatrkx-hpc demo': the whole thing on this machine, without Slurm and without a GPU.",
    no_args_is_help=True,
    invoke_without_command=True,
    **PLAIN,
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"exatrkx-hpc {__version__}")
        raise typer.Exit


def _complain(line: str, error: BaseException, *, kind: str, code: int) -> NoReturn:
    """Print an error on stderr and exit with its code; for a full disk, add the disk and its size."""
    words = [Path(word.partition("=")[2] if word.startswith("--") else word) for word in sys.argv[1:]]
    line = re.sub(r"\[Errno \d+\] ", "", line)
    why = full_disk(error, *(path for path in words if path.is_absolute() or os.path.exists(path)))  # noqa: PTH110 - Path.exists raises for a long name
    line = f"{line}; {why}" if why else line
    print(error_json(line, kind=kind, code=code) if _wants_json() else f"exatrkx-hpc: {line}", file=sys.stderr)
    sys.exit(code)


def _wants_json() -> bool:
    return "--json" in sys.argv[1:]


def _plain(error: OSError) -> str:
    """Return a system error without its errno."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}" if error.strerror else str(error).partition("\n")[0]


def main() -> None:
    """Run the command of the arguments; print an error on stderr and exit with its code.

    An error is one line, or with --json one JSON object (see `error_json`).
    """
    unwind_on_stop()
    try:
        # Typer prints usage errors itself, unless they shall be JSON.
        code = app(standalone_mode=not _wants_json())
        sys.exit(code if isinstance(code, int) else 0)
    except ExatrkxError as error:
        _complain(str(error), error, kind=type(error).__name__, code=error.exit_code)
    except typer.Abort:
        sys.exit(1)
    except KeyboardInterrupt:  # outside a command: inside one, Typer handles it
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:  # any that the library did not translate, such as a full disk
        _complain(_plain(error), error, kind=OutputError.__name__, code=OutputError.exit_code)
    except Exception as error:
        if (usage := usage_error(error)) is not None:
            _complain(usage, error, kind="UsageError", code=ConfigError.exit_code)
        if (number := unwound()) is None:
            _complain(fault_line(error, sys.argv), error, kind="Fault", code=EXIT_CODE)
        print(f"exatrkx-hpc: stopped in the middle of something ({type(error).__name__}: {error})", file=sys.stderr)
        sys.exit(number)
