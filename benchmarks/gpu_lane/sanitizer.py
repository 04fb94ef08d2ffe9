"""The kernels under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from gpu_lane.base import Lane, say
from gpu_lane.children import follow

_SCRIPT = Path(__file__).resolve().parents[2] / "tests" / "gpu" / "sanitize.py"
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_KERNELS = ("frnn_count", "frnn_limit", "frnn_write", "component_start", "component_join", "component_finish")
#: CUDA's own folder is not always on PATH.
_BESIDE = "/usr/local/cuda/bin"
#: What the sanitizer ends with when it has found something.
_FOUND = 9
_PLAIN_SECONDS, _TOOL_SECONDS = 60.0, 45.0


def sanitize(_: Lane) -> None:
    """Run tests/gpu/sanitize.py alone, which also compiles and keeps the kernels, and then under each tool."""
    status, _, last = _run([sys.executable, str(_SCRIPT)], _PLAIN_SECONDS)
    say("sanitizer", tool="none", clean=status == 0, status=status, last=last)
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=_BESIDE)
    if program is None:
        say("sanitizer", not_run="compute-sanitizer is not on PATH")
        return
    for tool in _TOOLS:
        options = [f"--tool={tool}", f"--error-exitcode={_FOUND}", "--target-processes=all", "--print-limit=20"]
        status, said, last = _run([program, *options, sys.executable, str(_SCRIPT)], _TOOL_SECONDS)
        say("sanitizer", tool=tool, **judged(status, said), last=last)


def judged(status: int | None, said: list[str]) -> dict[str, object]:
    """Return what a tool's output tells; `clean` is a whole run without a complaint about one of our kernels."""
    told = [line.removeprefix("=========").strip() for line in said if line.startswith("=========")]
    summary = [line for line in told if "SUMMARY" in line]
    ours = [kernel for kernel in _KERNELS if any(kernel in line for line in told)]
    elsewhere = sorted({name for line in told for name in re.findall(r"\bat ([A-Za-z_]\w*)", line)} - set(ours))
    return {
        "clean": status in (0, _FOUND) and bool(summary) and not ours and (status == 0 or bool(elsewhere)),
        "status": status,
        "summary": summary,
        "in_our_kernels": ours,
        "elsewhere": [] if status == 0 else elsewhere[:10],
        "complaints": [] if status == 0 else told[:12],
    }


def _run(argv: list[str], seconds: float) -> tuple[int | None, list[str], str]:
    said: list[str] = []
    status, last = follow(argv, env=os.environ, seconds=seconds, on_line=said.append)
    return status, said, last
