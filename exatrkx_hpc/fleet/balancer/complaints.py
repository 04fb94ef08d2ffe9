"""nginx's own complaints: its error log from where it was read last, and the warnings of `nginx -t`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

#: What nginx says, and what it means: each kind is told as one line, with the next step.
_KINDS: Final = (
    ("worker_connections exceed open file", "may open too few files for its connections; raise 'ulimit -Hn'"),
    ("worker_connections are not enough", "has no connection left; raise 'ulimit -Hn', or use fewer clients"),
    ("Too many open files", "has no open file left; raise 'ulimit -Hn', or use fewer clients"),
    ("RLIMIT_NOFILE", "may not open the files that it needs; raise 'ulimit -Hn'"),
    ("No space left on device", "has no space for its files; free some in the run directory"),
    ("Disk quota exceeded", "has no space for its files; free some in the run directory"),
    ("Cannot allocate memory", "has no memory; use fewer balancer.worker_processes"),
    ("fork() failed", "cannot start its workers; check 'ulimit -u'"),
    ("exited on signal", "lost a worker process and the requests in it; see its error.log"),
)
#: The lines that are no news: failures of single requests. The servers' own states tell more.
_OF_REQUESTS: Final = ("[error]", "[info]", "[notice]", "[debug]", ", client: ")
_LEVEL: Final = re.compile(r"\[(?:warn|alert|crit|emerg)\] (?:\d+#\d+: )?(?:\*\d+ )?(.*)")
_MOST_BYTES: Final = 1 << 18
#: In bytes. Each request that fails is a line, so that the log of a sick farm would grow without end.
_LARGE: Final = 1 << 24


class Complaints:
    """What one nginx complained about; the same kind is told again after `pause` seconds."""

    def __init__(self, log: Path, *, pause: float = 600.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at the present end of `log`, which need not exist."""
        self._log = log
        self._pause = pause
        self._clock = clock
        self._place = self._size()
        self._told: dict[str, float] = {}
        self._waiting: list[str] = []

    def note(self, output: str) -> None:
        """Take the output of an `nginx -t`."""
        self._waiting.extend(output.splitlines())

    def take(self) -> tuple[str, ...]:
        """Return the new complaints, one line a kind; a log that cannot be read has none."""
        lines, self._waiting = [*self._waiting, *self._new_lines()], []
        now = self._clock()
        found = [said for said in dict.fromkeys(_explained(lines)) if self._is_due(said, now)]
        self._told.update(dict.fromkeys(found, now))
        return tuple(found)

    def put_aside(self) -> bool:
        """Rename a log of more than 16 MiB to `error.log.1`, in the place of an earlier one; return whether."""
        if self._size() <= _LARGE:
            return False
        with contextlib.suppress(OSError):
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
            self._place = 0
            return True
        return False

    def _is_due(self, said: str, now: float) -> bool:
        return said not in self._told or now - self._told[said] >= self._pause

    def _new_lines(self) -> list[str]:
        """Return the new lines; of many, the last 256 KiB."""
        size = self._size()
        if size <= self._place:
            self._place = size
            return []
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._place, size - _MOST_BYTES))
                text = file.read(_MOST_BYTES)
        except OSError:
            return []
        self._place = size
        return text.decode(errors="replace").splitlines()

    def _size(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0


def _explained(lines: Iterable[str]) -> Iterable[str]:
    """Yield what the lines of a log complain about, in words of the table, or nginx's own without its numbers."""
    for line in lines:
        known = next((meaning for mark, meaning in _KINDS if mark in line), None)
        if known is not None:
            yield f"nginx {known}"
        elif not any(mark in line for mark in _OF_REQUESTS) and (found := _LEVEL.search(line)):
            yield f"nginx says: {re.sub(r'[0-9]+', 'N', found[1])[:200]}; see its error.log"
