"""Steps that run other programs on the kernels: the tests marked `gpu`, and NVIDIA's compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from gpu_lane.base import Lane, say
from gpu_lane.children import follow

_TESTS = Path(__file__).resolve().parents[2] / "tests"
_TRACKING = _TESTS / "unit" / "tracking"
_SCRIPT = _TESTS / "gpu" / "sanitize.py"
_FILES = ("test_frnn.py", "test_components.py", "test_kernels.py", "test_pipeline.py", "test_fused_execute.py")
#: Options that switch off the project's pytest plugins and options: only pytest itself is installed.
_ALONE = ("-q", "--noconftest", "-o", "addopts=", "-W", "default", "-p", "no:cacheprovider")
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_KERNELS = ("frnn_count", "frnn_limit", "frnn_write", "component_start", "component_join", "component_finish")
#: CUDA's own folder is not always on PATH.
_BESIDE = "/usr/local/cuda/bin"
#: Exit status of the sanitizer if it found an error.
_FOUND = 9
#: Print limit above the number of errors of any tool: errors after the limit are lost, and may be in our kernels.
_EVERY = 100_000
_TEST_SECONDS, _PLAIN_SECONDS, _TOOL_SECONDS = 85.0, 60.0, 45.0


def tests(_: Lane) -> None:
    """Run the tests marked `gpu`."""
    argv = [
        sys.executable,
        "-m",
        "pytest",
        *_ALONE,
        "-m",
        "gpu",
        *(str(_TRACKING / name) for name in _FILES),
    ]
    status, said, last = _run(argv, _TEST_SECONDS)
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    wrong = [line for line in said if line.startswith(("FAILED", "ERROR"))]
    say("tests", ok=status == 0 and counts.get("passed", 0) > 0, status=status, **counts, wrong=wrong[:20], last=last)


def sanitize(_: Lane) -> None:
    """Run tests/gpu/sanitize.py alone, which also compiles and caches the kernels, and then under each tool."""
    status, _, last = _run([sys.executable, str(_SCRIPT)], _PLAIN_SECONDS)
    say("sanitizer", tool="none", equal=status == 0, status=status, last=last)
    if status != 0:
        raise AssertionError(f"{_SCRIPT.name} alone ends with {status}: {last}")
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=_BESIDE)
    if program is None:
        say("sanitizer", not_run="compute-sanitizer is not on PATH")
        return
    for tool in _TOOLS:
        options = [f"--tool={tool}", f"--error-exitcode={_FOUND}", "--target-processes=all", f"--print-limit={_EVERY}"]
        status, said, last = _run([program, *options, sys.executable, str(_SCRIPT)], _TOOL_SECONDS)
        say("sanitizer", tool=tool, **judged(status, said), last=last)


def judged(status: int | None, said: list[str]) -> dict[str, object]:
    """Return the findings in a tool's output; `clean` is a complete run without an error in one of our kernels."""
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
