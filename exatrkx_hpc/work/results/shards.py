"""Shards of a dataset: the shard of each event, and the number of shards of OUT.

Each shard has its own ledger, lock and quarantine in OUT/shards; the label files of all shards are in OUT/labels. The
first run writes the number of shards to OUT/shards.json. Later runs distribute the same shards over their nodes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.files import write_whole

PER_NODE: Final = 2
"""Shards per node of the first run: when a node is lost, two other nodes share its work."""

_FORMAT: Final = 1


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 0. The default is the whole dataset."""

    number: int = 0
    of: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole dataset."""
        return self.of == 1

    def owns(self, key: bytes) -> bool:
        """Return whether the event with this key (`event_key`) is in this shard; the same on every machine."""
        if self.is_whole:
            return True
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE: Final = Shard()
"""All events, without shards."""


def shard_folder(out: Path, number: int) -> Path:
    """Return the folder of a shard's ledger."""
    return out / "shards" / str(number)


def read_sharding(out: Path) -> int | None:
    """Return the number of shards of OUT, None without shards; raises OutputError if shards.json cannot be read."""
    path = _file(out)
    try:
        fields = json.loads(path.read_text())
        number = fields["shards"]
        if fields["format"] != _FORMAT or not isinstance(number, int) or number < 2:
            raise ValueError(f"format {fields['format']}, {number} shards")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot use {out} for results: {error.strerror} ({path}); choose another -o") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is damaged, the number of shards cannot be read ({error}); restore it from a backup, or choose "
            "another -o"
        ) from error
    return number


def begin_sharding(out: Path, shards: int, *, fresh: bool = False) -> None:
    """Write the number of shards of OUT, which must be at least 2; raises OSError.

    `fresh` says that results of an earlier run are still there: each shard removes its own, when it begins.
    """
    for number in range(shards) if fresh else ():
        folder = shard_folder(out, number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fresh").touch()
    write_whole(_file(out), json.dumps({"format": _FORMAT, "shards": shards}) + "\n")


def forget_sharding(out: Path) -> None:
    """Remove OUT/shards, then shards.json; raises OSError."""
    if (out / "shards").exists():
        shutil.rmtree(out / "shards")
    _file(out).unlink(missing_ok=True)


def _file(out: Path) -> Path:
    return out / "shards.json"
