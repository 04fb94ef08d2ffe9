"""The journal of results, OUT/results.jsonl: what proves the results if the ledger is lost.

Each line is JSON: the facts of the ledger, a result on disk with its digest and that of its event, or a part on disk
with its results. It only grows, by about 400 bytes for each event; later lines replace earlier ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.results.outcome import Result
from exatrkx_hpc.work.results.parts import Part

NAME: Final = "results.jsonl"


class Journal:
    """Appends to the journal; lines wait in memory until `flush`."""

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._lines: list[str] = []
        self._file: int | None = None

    def note_facts(self, facts: Mapping[str, str]) -> None:
        """Note facts of the ledger."""
        self._add({"facts": dict(facts)})

    def note_result(self, result: Result) -> None:
        """Note a result that is on disk."""
        self._add({"result": vars(result)})

    def note_part(self, part: Part, results: Sequence[Result]) -> None:
        """Note a part that is on disk, with its results in their order."""
        self._add({"part": vars(part), "results": [vars(result) for result in results]})

    def _add(self, fields: Mapping[str, object]) -> None:
        self._lines.append(json.dumps(fields, separators=(",", ":")))

    def flush(self) -> None:
        """Append the waiting lines; raises OutputError when they cannot be written.

        The file stays open until `close`: a run that has no free file descriptor can still write. After an error, the
        next call opens it anew and first ends the line that the error cut.
        """
        if not self._lines:
            return
        data = ("\n".join(self._lines) + "\n").encode()
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                size = os.fstat(self._file).st_size
                if size and os.pread(self._file, 1, size - 1) != b"\n":  # a kill or an error cut the last line
                    data = b"\n" + data
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self._release()
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; check permissions and free space"
            ) from error
        self._lines.clear()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Write the waiting lines and close the file; raises OutputError."""
        try:
            self.flush()
        finally:
            self._release()


def read_journal(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a journal; a line that a kill cut is skipped. Nothing without a journal; raises OSError."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue
                if isinstance(fields, dict):
                    yield fields
    except FileNotFoundError:
        return


def facts_in(path: Path) -> dict[str, str]:
    """Return the facts of a journal; empty without one. Raises OSError."""
    found: dict[str, str] = {}
    for line in read_journal(path):
        found |= line.get("facts", {})
    return found
