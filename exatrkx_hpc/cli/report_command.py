"""`report`: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exatrkx_hpc.cli.options import Json, answer
from exatrkx_hpc.page.write import write_page


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of run-clients, with its ledger.")] = Path("results"),
    times: Annotated[
        bool, typer.Option("--times", help="Also write times.csv with the time of each stage of each event.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write report.html for a run again and print its path.

    Works for a run that was killed, too.

    Example: exatrkx-hpc report results
    """
    page = write_page(out, times=times)
    answer(str(page), as_json=as_json, page=page)
