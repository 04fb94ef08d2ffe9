"""One node's part of a run in shards: run its shards in turn; read and write the order file that lists them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.news import told_of
from exatrkx_hpc.work.nodes.state import StateFile
from exatrkx_hpc.work.results.shards import Shard
from exatrkx_hpc.work.run.progress import Tally
from exatrkx_hpc.work.run.run import Settings, StoppedRun, run_clients


def run_shards(
    settings: Settings,
    shards: Sequence[int],
    *,
    of: int,
    node: str,
    look: Callable[[], None] = lambda: None,
    tell: Tell = untold,
) -> None:
    """Run `shards` of `of` on this machine, one after the other, and write the state of each to its state.json.

    An error or a stop of one shard ends the loop; the state of the shard has the reason. `look` is called when a state
    was written. Raises OSError when a state cannot be written.
    """
    for number in shards:
        if not _run_shard(settings, Shard(number, of), node=node, look=look, tell=tell):
            return


def _run_shard(settings: Settings, shard: Shard, *, node: str, look: Callable[[], None], tell: Tell) -> bool:
    """Run one shard and return whether the next one may start."""
    state = StateFile(settings.out, shard.number, node=node)

    def show(tally: Tally) -> None:
        if state.show(tally):
            look()

    try:
        run_clients(dataclasses.replace(settings, shard=shard), show, tell=told_of(tell, shard=str(shard)))
    except StoppedRun as stopped:
        state.end(stopped.exit_code, stopped.report.stopped or "")
        return False
    except ExatrkxError as error:
        state.end(error.exit_code, str(error))
        return False
    state.end(0)
    look()
    return True


def write_order(path: Path, settings: Settings, shards: Sequence[int], *, of: int) -> None:
    """Write the order file for the tasks of a step; raises OSError."""
    fields = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "shard"}
    told = {name: {"path": str(value)} if isinstance(value, Path) else value for name, value in fields.items()}
    write_whole(path, json.dumps({"settings": told, "shards": list(shards), "of": of}, indent=2) + "\n")


def read_order(path: Path) -> tuple[Settings, list[int], int]:
    """Read an order file: the settings, the shards to run, and the total number of shards."""
    order = json.loads(path.read_text())
    fields: dict[str, Any] = order["settings"]
    told: dict[str, Any] = {
        name: Path(value["path"]) if isinstance(value, dict) else value for name, value in fields.items()
    }
    return Settings(**told), order["shards"], order["of"]
