"""Find the processes of a folder."""

from __future__ import annotations

from pathlib import Path

import psutil


def about(folder: Path) -> list[str]:
    """Return PID and command of each process that has the folder in its command line or as working directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.status() != "zombie" and (str(folder) in words or process.cwd() == str(folder)):
                found.append(f"{process.pid} {words[:120]}")
        except psutil.Error:
            continue
    return found
