"""Markdown pages: their fenced blocks, and the commands in console blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

NOT_RUN = {"site", "fresh"}
FENCE = re.compile(r"^```[ \t]*(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: the line of the page where its text begins, the words after the fence, and the text."""

    line: int
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""


def blocks(page: str) -> list[Block]:
    return [
        Block(line=page.count("\n", 0, match.start("text")) + 1, words=tuple(match["info"].split()), text=match["text"])
        for match in FENCE.finditer(page)
    ]


def commands(block: Block) -> list[tuple[int, str]]:
    """Return each command of a console block with its line: `$ ` starts one; `> `, or a `\\` before, continues it."""
    found: list[tuple[int, str]] = []
    for line, text in enumerate(block.text.splitlines(), start=block.line):
        if text.startswith("$ "):
            found.append((line, text[2:]))
        elif found and (text.startswith("> ") or found[-1][1].endswith("\\")):
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{text.removeprefix('> ')}")
    return found


def consoles(page: str, *, run_here: bool) -> list[tuple[int, str]]:
    chosen = [b for b in blocks(page) if b.language == "console" and bool(NOT_RUN & set(b.words)) != run_here]
    return [command for block in chosen for command in commands(block)]


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]
