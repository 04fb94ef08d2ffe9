"""`events generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc.cli.options import Quiet
from exatrkx_hpc.cli.progress import stages
from exatrkx_hpc.errors import ConfigError, OutputError
from exatrkx_hpc.tracking import synthetic

events_app = typer.Typer(help="Make events with known truth.", no_args_is_help=True)


@events_app.callback()
def _events() -> None:
    """Make events with known truth."""


@events_app.command(epilog="Example: exatrkx-hpc events generate --out events --events 100")
def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to; truth goes to its folder truth/.")],
    events: Annotated[int, typer.Option("--events", min=1, help="How many events.")] = 100,
    tracks: Annotated[int, typer.Option("--tracks", min=0, help="Particles in each event.")] = synthetic.DEFAULT_TRACKS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same events.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write synthetic events: helices in a solenoid through barrel and endcaps, and noise."""
    try:
        _refuse_events_of_another_call(out)
        with stages(quiet=quiet) as show:
            synthetic.write_events(out, events=events, tracks=tracks, seed=seed, on_progress=show)
    except OSError as error:
        raise OutputError(f"events cannot be written to {out}: {error.strerror}") from error
    except MemoryError as error:
        raise ConfigError(f"{tracks} tracks in an event do not fit into memory; lower --tracks") from error
    typer.echo(f"{events} events in {out}, their truth in {out / synthetic.TRUTH_FOLDER}")


def _refuse_events_of_another_call(out: Path) -> None:
    """Raise OutputError when `out` holds events: those of two calls or seeds would pass for one set."""
    held = sum(1 for path in out.glob("[!.]*.csv"))
    if held:
        raise OutputError(f"{out} holds {held} events already; use them, remove the folder, or choose another --out")
