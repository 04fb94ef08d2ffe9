"""What clients report about the servers behind an endpoint: one file per client, with counts by server.

A client writes its file again and again with growing counts; the monitor reads the files of all clients. A server is
named by its gRPC address, `host:port`, as in the header `exatrkx-member` of its answers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from exatrkx_hpc.base.files import write_whole


@dataclass(frozen=True, kw_only=True)
class MemberCounts:
    """Requests of one client to one server by their end, since the client's start.

    `failures` are errors that may be the server's, such as a broken stream or a deadline.
    """

    answers: int = 0
    failures: int = 0

    def __add__(self, other: MemberCounts) -> MemberCounts:
        return MemberCounts(answers=self.answers + other.answers, failures=self.failures + other.failures)


def write_member_report(folder: Path, client: str, counts: Mapping[str, MemberCounts]) -> None:
    """Replace the report of `client`, a name that no other client has (such as HOST-PID), by these counts by server.

    Makes the folder if it is missing. Raises OSError; a report is worth no failed request.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    members = {member: asdict(count) for member, count in counts.items()}
    write_whole(folder / f"{client}.json", json.dumps({"client": client, "members": members}) + "\n", mode=0o600)


class MemberReports:
    """Reads the reports of all clients; grows linearly with the reports that changed since the last time."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet; a missing folder has no reports."""
        self._folder = folder
        self._known: dict[Path, tuple[int, dict[str, MemberCounts]]] = {}

    def totals(self) -> dict[str, MemberCounts]:
        """Return the counts by server, summed over the clients.

        A report that cannot be read, or a folder that cannot be listed, counts as it was read last.
        """
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                self._read(path)
        totals: dict[str, MemberCounts] = {}
        for _, counts in self._known.values():
            for member, count in counts.items():
                totals[member] = totals.get(member, MemberCounts()) + count
        return totals

    def _read(self, path: Path) -> None:
        """Note a report that has changed; leave what is no report."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            changed = path.stat().st_mtime_ns
            if self._known.get(path, (0,))[0] != changed:
                self._known[path] = (changed, _counts(path))


def _counts(path: Path) -> dict[str, MemberCounts]:
    members = json.loads(path.read_bytes())["members"]
    return {
        str(name): MemberCounts(answers=int(one["answers"]), failures=int(one["failures"]))
        for name, one in members.items()
    }
