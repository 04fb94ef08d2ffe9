"""`report`: the page of a run again, from what the run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc.page.write import write_page


def report(
    out: Annotated[Path, typer.Argument(help="The folder that run-clients wrote, with its ledger.")] = Path("results"),
    times: Annotated[bool, typer.Option("--times", help="Also write times.csv, each stage of each event.")] = False,
) -> None:
    """Write report.html again, the page of a run, and print where it is; also of a run that was killed.

    Example: exatrkx-hpc report results
    """
    typer.echo(write_page(out, times=times))
