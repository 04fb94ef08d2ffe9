"""Disturb a farm under load in every way that we know, and count what it costs the events.

A real Slurm cluster of four nodes runs on this machine (root, Linux; `make cluster` says what it needs). A farm of
three real Triton servers stands behind its endpoint, and run-clients loads it with 8 workers and 4 requests in flight
of each. The model of the servers has faults that a file or an event switches on. For each fault the table has the
events without a right result, results that are wrong, events with two results, events that were blamed without being
special, deliveries of the special event, the slowest event, and the seconds until the balancer's list of servers was
right.

`--source FOLDER` lets the same faults happen to the commands of another checkout, such as one without a remedy.

Example:
    python benchmarks/steady.py --events 2000 --json steady.json
    python benchmarks/steady.py --only kill
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from cluster import missing
from steady_farm import special
from steady_farm.rows import ROWS, SHORT, Row
from steady_farm.site import Options, Site, farm, give, tally

from exatrkx_hpc.base.errors import IncompleteRun

#: Seconds for a request, except for the long ones.
LIMIT = 10.0
#: Deliveries that an event which costs servers may have.
MOST_DELIVERIES = 4


def main() -> None:
    """Run the rows, print the table, and write the figures as JSON if requested; exit 1 if an event was lost."""
    arguments = _arguments()
    if reason := missing():
        sys.exit(reason)
    names = ("events", "long", "patience", "deadline", "source")
    options = Options(**{name: getattr(arguments, name) for name in names})
    among = SHORT if arguments.short else ROWS
    rows = [row for row in among if not arguments.only or any(word in row.name for word in arguments.only)]
    if not rows:
        sys.exit(f"no row matches {' or '.join(arguments.only)}; the rows are: {', '.join(row.name for row in among)}")
    figures = disturb(rows, options, arguments.json)
    Console(width=None if sys.stdout.isatty() else 140).print(_table(figures))
    sys.exit(0 if all(one["right"] for one in figures) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2000, help="events of each row")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for which a request is retried")
    parser.add_argument("--deadline", type=float, default=900.0, help="seconds after which the clients must have ended")
    parser.add_argument("--long", type=float, default=90.0, help="seconds that a long request takes")
    parser.add_argument("--short", action="store_true", help="only the rows that the tests run, too")
    parser.add_argument("--only", action="append", default=[], help="only rows whose name contains this; repeatable")
    parser.add_argument("--source", type=Path, help="use the commands of this checkout")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def disturb(rows: Sequence[Row], options: Options, json_file: Path | None = None) -> list[dict[str, object]]:
    """Run the rows one after the other on one cluster; return the figures of each, which `json_file` gets as well."""
    figures: list[dict[str, object]] = []
    with farm(options) as site:
        for number, row in enumerate(rows):
            figures.append(one_row(site, row, f"out-{number}"))
            print(json.dumps(figures[-1]), file=sys.stderr, flush=True)
            if json_file is not None:
                json_file.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def one_row(site: Site, row: Row, out: str) -> dict[str, object]:
    """Let one fault happen to the farm under load, with results in `out`; return its figures."""
    events = site.home / "events"
    shutil.rmtree(events, ignore_errors=True)
    shutil.copytree(site.kept, events)
    planted = special.plant(events, row.special, number=row.specials) if row.special else ()
    give(site, events)
    site.pace(row.lasts)
    seconds, status, harness = None, None, ""
    try:
        seconds, status = _load(site, row, out)
    except Exception as error:  # the next row must go on
        traceback.print_exc()
        harness = f"{type(error).__name__}: {error}"
    deliveries = site.deliveries()
    site.calm()
    result = {
        "fault": row.name,
        **_judge(site, row, out, set(planted)),
        "status": status,
        "deliveries": deliveries,
        "until_right": "never" if seconds == math.inf else seconds,
        "harness": harness,
    }
    guilty = row.special not in ("", "long")
    result["right"] = (
        bool(result["right"])
        and not harness
        and seconds != math.inf
        and status == (IncompleteRun.exit_code if guilty else 0)
        and (not guilty or deliveries <= MOST_DELIVERIES)
    )
    _heal(site, row, healthy=not harness)
    return result


def _load(site: Site, row: Row, out: str) -> tuple[float | None, int | None]:
    """Run the clients and let the fault happen; return the seconds until the list was right, and the exit status."""
    words = [*row.prefix, *site.clients(out, *row.more)]
    limit = site.options.long + 30 if row.special == "long" else LIMIT
    variables = {"EXATRKX_HPC_CLIENTS_REQUEST_TIMEOUT": str(limit)}
    clients = site.spawn(words, site.home / f"{out}.log", **variables)
    share = site.options.events // 10
    site.until(lambda: site.labels(out) > share or clients.returncode() is not None, "the first results", 120)
    seconds = row.happens(site)
    if clients.returncode() is not None and not row.resumes and seconds != math.inf:
        raise RuntimeError("the clients ended before the fault")
    status = clients.wait(site.options.deadline)
    if row.resumes:
        clients = site.spawn(words, site.home / f"{out}-again.log", **variables)
        status = clients.wait(site.options.deadline)
    if status is None:
        clients.stop(grace=10)
        raise TimeoutError(f"the clients did not end within {site.options.deadline:g} s")
    site.require_monitor()
    return seconds, status


def _judge(site: Site, row: Row, out: str, planted: set[str]) -> dict[str, object]:
    try:
        found = tally(site, out)
    except Exception as error:  # there is no ledger
        return {"right": False, "events": 0, "problem": str(error)}
    guilty = planted if row.special != "long" else set()
    lost, blamed = set(found.lost) - guilty, set(found.quarantined) - guilty
    return {
        "events": found.events,
        "lost": len(lost),
        "wrong": len(found.wrong),
        "twice": len(found.twice),
        "blamed": len(blamed),
        "slowest": round(found.slowest, 2),
        "right": not lost and not found.wrong and not found.twice and not blamed and guilty <= set(found.quarantined),
    }


def _heal(site: Site, row: Row, *, healthy: bool) -> None:
    """Undo a fault, and wait until the farm is whole; a farm that does not recover is started anew."""
    row.undo(site)
    try:
        if row.fresh or not healthy:
            raise TimeoutError(row.name)
        site.wait_ready(3)
    except TimeoutError:
        site.stop_farm()
        site.cluster.wait_idle()
        site.start_farm()


def _table(figures: list[dict[str, object]]) -> Table:
    table = Table(title="A farm under load")
    columns = ("fault", "events", "lost", "wrong", "twice", "blamed", "deliveries", "slowest", "until_right", "right")
    for column in columns:
        table.add_column(column)
    for one in figures:
        table.add_row(*("" if one.get(name) is None else _text(one[name]) for name in columns))
    return table


def _text(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
