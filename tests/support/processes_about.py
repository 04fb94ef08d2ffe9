"""The processes that have something to do with a folder."""

from __future__ import annotations

from pathlib import Path

import psutil


def about(folder: Path) -> list[str]:
    """The processes that have something to do with a folder: by their command or by where they are."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.status() != "zombie" and (str(folder) in words or process.cwd() == str(folder)):
                found.append(f"{process.pid} {words[:120]}")
        except psutil.Error:
            continue
    return found
