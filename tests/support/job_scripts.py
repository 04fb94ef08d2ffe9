"""Check job scripts with shellcheck, and read their directives as sbatch does."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program, run


def shellcheck(files: list[Path]) -> None:
    try:
        program = find_program("shellcheck", remedy="pip install 'exatrkx-hpc[dev]'")
    except MissingComponent as error:
        pytest.skip(str(error))
    done = run([program, *map(str, files)], timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def read_as_sbatch(line: str) -> list[str]:
    """Return the words of a #SBATCH line as sbatch reads them.

    White space separates words. Single and double quotes keep a word together. A backslash, even inside quotes, makes
    the next character literal. A # that is not quoted or escaped ends the line (`_get_argument` in Slurm's
    sbatch/opt.c).
    """
    words: list[str] = []
    word, quote, characters = "", "", iter(line.removeprefix("#SBATCH"))
    for character in characters:
        if character == "\\":
            word += next(characters)
        elif quote:
            word, quote = (word, "") if character == quote else (word + character, quote)
        elif character in "\"'":
            quote = character
        elif character == "#":
            break
        elif character.isspace():
            words += [word] if word else []
            word = ""
        else:
            word += character
    assert not quote, f"sbatch finds no end of {quote} in {line}"
    return words + ([word] if word else [])
