"""The progress of a shard, in OUT/shards/K/state.json: written by its node, read by the run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.results.shards import shard_folder
from exatrkx_hpc.work.run.progress import Tally
from exatrkx_hpc.work.run.silence import Silence

_EVERY: Final = 1.0
"""Seconds between two writes of a shard's state; a shared file system can take this from a thousand nodes."""


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """The last written state of a shard: its node, its counts, and how its run ended.

    `code` is None while the shard runs and after it was killed, 0 when every event was tried, else the exit code of
    the error `why`.
    """

    node: str
    events: int = 0
    done: int = 0
    failed: int = 0
    retries: int = 0
    in_flight: int = 0
    members: Mapping[str, int] = field(default_factory=dict)
    silence: Silence | None = None
    code: int | None = None
    why: str = ""

    @property
    def error(self) -> ExatrkxError | None:
        """The error that ended the run, of its original class; None while it runs or after success."""
        if not self.code:
            return None
        classes = {kind.exit_code: kind for kind in reversed(ExatrkxError.__subclasses__())}
        return classes.get(self.code, ExatrkxError)(self.why)


class StateFile:
    """Writes the state of a shard, for the node that runs it."""

    def __init__(self, out: Path, number: int, *, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Write that `node` has started the shard; raises OSError."""
        self._path = _file(out, number)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._state = ShardState(node=node)
        self._write()

    def show(self, tally: Tally) -> bool:
        """Take a tally, write it at most once per second, and return whether it was written."""
        self._state = dataclasses.replace(self._state, **{**vars(tally), "members": dict(tally.members)})
        if self._clock() - self._written < _EVERY:
            return False
        with contextlib.suppress(OSError):  # a run that cannot write ends with its own error
            self._write()
        return True

    def end(self, code: int, why: str = "") -> None:
        """Write how the shard ended; raises OSError."""
        self._state = dataclasses.replace(self._state, in_flight=0, silence=None, code=code, why=why)
        self._write()

    def _write(self) -> None:
        self._written = self._clock()
        write_whole(self._path, json.dumps(dataclasses.asdict(self._state)) + "\n")


def read_state(out: Path, number: int) -> ShardState | None:
    """Return the last state of a shard, or None if it was not started or its file cannot be read."""
    try:
        fields = json.loads(_file(out, number).read_text())
        if fields.get("silence"):
            fields["silence"] = Silence(**fields["silence"])
        return ShardState(**fields)
    except (OSError, ValueError, TypeError):
        return None


def forget_state(out: Path, number: int) -> None:
    """Remove the state of an earlier run; raises OSError."""
    _file(out, number).unlink(missing_ok=True)


def together(states: Mapping[int, ShardState], of: int) -> Tally | None:
    """Return the tally of all `of` shards; None while no shard has counted its events.

    Shards have similar sizes, so a shard that has not counted its events is assumed to have the average number.
    """
    known = [state for state in states.values() if state.events or state.code == 0]
    if not known:
        return None
    events = sum(state.events for state in known)
    if len(known) < of:
        events = round(events / len(known) * of)
    members: Counter[str] = Counter()
    for state in known:
        members.update(state.members)
    return Tally(
        events=events,
        done=sum(state.done for state in known),
        failed=sum(state.failed for state in known),
        retries=sum(state.retries for state in known),
        in_flight=sum(state.in_flight for state in known if state.code is None),
        members=members,
        silence=_silence(state for state in known if state.code is None),
    )


def _silence(running: Iterable[ShardState]) -> Silence | None:
    """Return the shortest silence if no running shard gets results; None otherwise."""
    silences = [state.silence for state in running]
    if not silences or any(one is None for one in silences):
        return None
    shortest = min(one.seconds for one in silences if one is not None)
    return Silence(
        seconds=shortest,
        tried=sum(one.tried for one in silences if one is not None),
        left=max(one.left for one in silences if one is not None),
    )


def _file(out: Path, number: int) -> Path:
    return shard_folder(out, number) / "state.json"
