"""Read a large JSON file incrementally: the elements of its first array, without the whole file in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.base.parsing import parse_errors

#: More characters than any event has. The limit keeps a file with unmatched brackets from filling the memory.
LONGEST: Final = 1 << 29
_CHUNK: Final = 1 << 20
_SPACE: Final = " \t\r\n"
#: A complete string, the opening quote of an incomplete string, or a bracket.
_MARK: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{}]', re.DOTALL)


def array_elements(path: Path, key: str, *, longest: int = LONGEST) -> Iterator[object]:
    """Yield the elements, objects or arrays, of the array in the member `key` of a JSON file's object.

    This member must come first. After the array, a `}` or `,` must follow; the rest of the file is ignored. Memory
    holds one element at a time, of at most `longest` characters. Raises InputError for a file that cannot be read or
    has another structure.
    """
    try:
        with parse_errors(path, "JSON", but=(UnicodeDecodeError, OSError)), path.open(encoding="utf-8-sig") as file:
            text = _Text(file, path, longest)
            for sign in ("{", f'"{key}"', ":", "["):
                if not text.take(sign):
                    raise InputError(f'{path} does not begin with {{"{key}": [, as perf_analyzer\'s input data do')
            yield from _elements(text, path)
            if not text.take("}") and not text.take(","):
                raise InputError(
                    f"{path} ends after the last event without a }}: the file is truncated; write it again"
                )
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save the JSON as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _elements(text: _Text, path: Path) -> Iterator[object]:
    number = 0
    if text.take("]"):
        return
    while True:
        piece = text.value(f"event {number}")
        try:
            element = json.loads(piece, object_pairs_hook=_members)
        except (ValueError, RecursionError, MemoryError) as error:
            said = str(error)[:200] or type(error).__name__
            raise InputError(f"{path}: event {number} is not valid JSON: {said}; write the file again") from error
        yield element
        number += 1
        if text.take("]"):
            return
        if not text.take(","):
            raise InputError(
                f"{path}: neither a comma nor ] after event {number - 1}; the file is truncated or not JSON"
            )


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; raise ValueError for a duplicate key, which would silently replace the first value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"the key {twice[:40]!r} appears twice")
    return found


class _Text:
    """The text of a file; memory holds only the piece that is being parsed."""

    def __init__(self, file: TextIO, path: Path, longest: int) -> None:
        self._file, self._path, self._longest = file, path, longest
        self._text, self._place = "", 0

    def take(self, sign: str) -> bool:
        """Skip white space, and `sign` if it comes next; return whether it came."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if len(self._text) - self._place >= len(sign) or not self._more():
                break
        found = self._text.startswith(sign, self._place)
        self._place += len(sign) if found else 0
        return found

    def value(self, what: str) -> str:
        """Return the text of the next object or array; messages call it `what`."""
        self.take(" ")
        if self._text[self._place : self._place + 1] not in ("{", "["):
            raise InputError(f"{self._path}: {what} is not an object; the file is truncated or not JSON")
        depth, offset = 0, 0  # the offset counts from the place, which moves when more text is read
        while True:
            mark = _MARK.search(self._text, self._place + offset)
            if mark is None or mark[0] == '"':
                offset = (mark.start() if mark else len(self._text)) - self._place
                if not self._more():
                    raise InputError(f"{self._path} ends within {what}: the file is truncated; write it again")
                continue
            offset = mark.end() - self._place
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark[0], 0)
            if depth == 0:
                piece = self._text[self._place : self._place + offset]
                self._place += offset
                return piece

    def _more(self) -> bool:
        """Read at least as much text again as is left, so that a long piece is searched rarely; False at the end."""
        rest = self._text[self._place :]
        if len(rest) > self._longest:
            raise InputError(
                f"{self._path}: more than {self._longest} characters in one event; check that its brackets match"
            )
        fresh = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._place = rest + fresh, 0
        return bool(fresh)
