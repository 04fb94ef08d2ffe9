"""Run the installed command line as a user does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from exatrkx_hpc.base.process import Completed, run

PROGRAM = str(Path(sys.executable).parent / "exatrkx-hpc")


def exatrkx_hpc(*words: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> Completed:
    """Run `exatrkx-hpc` with these arguments; `cwd` is the working directory and the home folder."""
    variables = {**os.environ, "HOME": str(cwd), **(env or {})}
    return run([PROGRAM, *map(str, words)], cwd=cwd, env=variables, timeout=timeout)


def complaint(done: Completed, code: int) -> str:
    """Return the error line of a failed command; fail unless it is one line and the exit code is `code`."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    if lines[0].startswith('{"error"'):  # with --json
        told = json.loads(lines[0])["error"]
        return f"exatrkx-hpc: {told['message']}" + (f"; {told['next']}" if told["next"] else "")
    assert lines[0].startswith("exatrkx-hpc: ")
    assert "Traceback" not in done.stderr
    return lines[0]
