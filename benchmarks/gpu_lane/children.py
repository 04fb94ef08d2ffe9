"""Run each step in a new process with a time limit, and pass on its lines as they arrive."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from exatrkx_hpc.base.process import Child, spawn

Line = dict[str, Any]
_BEGINS: Final = '{"step"'
#: Time (s) in which a stopped step must end the processes that it started in sessions of their own.
_GRACE = 10.0


def run_step(
    step: str, argv: Sequence[str], *, env: Mapping[str, str], seconds: float, tell: Callable[[Line], None]
) -> None:
    """Run a step's command for at most `seconds`, then end all processes that it started.

    `tell` gets each line of the step; its other output goes to stderr. A step that fails prints a line with `failed`
    itself. If it dies or runs out of time, `tell` gets such a line from here.
    """
    failed = False

    def pass_on(text: str) -> None:
        nonlocal failed
        line = _line(text)
        if line:
            failed |= "failed" in line
            tell(line)
        elif text:
            print(f"{step}: {text}", file=sys.stderr, flush=True)

    status, last = follow(argv, env=env, seconds=seconds, on_line=pass_on)
    if status is None:
        tell({"step": step, "failed": f"not done within {seconds:.0f} s"})
    elif status != 0 and not failed:
        tell({"step": step, "failed": f"exit status {status}: {last}"})


def follow(
    argv: Sequence[str], *, env: Mapping[str, str], seconds: float, on_line: Callable[[str], None]
) -> tuple[int | None, str]:
    """Run a command; return its exit status, None after a timeout, and its last line of output.

    `on_line` gets each line of its output as it arrives. At the end all processes that it started have ended.
    """
    last = "it said nothing"

    def heard(text: str) -> None:
        nonlocal last
        last = text.strip() or last
        on_line(text)

    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        child = spawn(argv, log=log, env=env)
        try:
            with log.open(encoding="utf-8", errors="replace") as output:
                status = _listen(child, output, until, heard)
        finally:
            child.stop(grace=_GRACE)
    return status, last


def _line(text: str) -> Line | None:
    """Return a line of a step, or None for any other output."""
    if not text.startswith(_BEGINS):
        return None
    try:
        line: Line = json.loads(text)
    except ValueError:  # other output came in the middle of the line
        return None
    return line


def _listen(child: Child, output: TextIO, until: float, heard: Callable[[str], None]) -> int | None:
    part = ""
    while True:
        status = child.wait(0.1)
        part += output.read()
        *lines, part = part.split("\n")
        for line in lines:
            heard(line)
        if status is not None or time.monotonic() > until:
            if part:
                heard(part)
            return status
