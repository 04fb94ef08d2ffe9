"""A dataset in shards: which events are whose, and what OUT/shards holds of each.

Each shard has a ledger, a lock and a quarantine of its own; the label files of all lie in the one OUT/labels. How many
there are is said once, in OUT/shards.json, when OUT is begun: later runs spread the same shards over what they have.
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
"""Shards for each node of the first run: when a node is lost, two others share what it leaves, not one alone."""

_FORMAT: Final = 1


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 0. The default is the whole dataset."""

    number: int = 0
    of: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole dataset, undivided."""
        return self.of == 1

    def owns(self, key: bytes) -> bool:
        """Say whether the event with this key (`event_key`) belongs to it; the same everywhere and for ever."""
        if self.is_whole:
            return True
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE: Final = Shard()
"""All events, undivided."""


def shard_folder(out: Path, number: int) -> Path:
    """Return where a shard's ledger is."""
    return out / "shards" / str(number)


def read_sharding(out: Path) -> int | None:
    """Return how many shards OUT has, or None when it is undivided; raises OutputError when that cannot be read."""
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


def begin_sharding(out: Path, shards: int) -> None:
    """Write down that OUT has so many shards, 2 at least; raises OSError."""
    write_whole(_file(out), json.dumps({"format": _FORMAT, "shards": shards}) + "\n")


def forget_sharding(out: Path) -> None:
    """Remove the shards' ledgers, and then the word that there are shards; raises OSError."""
    if (out / "shards").exists():
        shutil.rmtree(out / "shards")
    _file(out).unlink(missing_ok=True)


def _file(out: Path) -> Path:
    return out / "shards.json"
