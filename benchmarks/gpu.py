"""Check and measure the GPU path in one run of at most nine minutes; each step prints JSON lines on stdout.

Each step runs in a new process with a time limit; if it fails, a line has `failed`, and the next step runs. The last
line is a summary: each acceptance criterion is true, false or "not run", and the exit status is 1 if one is false.
Diagnostics go to stderr. Needs NumPy, SciPy, PyTorch, CuPy and this checkout, and no network. Examples:

    python3 benchmarks/gpu.py > gpu.jsonl
    python3 benchmarks/gpu.py --triton packed-triton.tar.gz > gpu.jsonl
    python3 benchmarks/gpu.py --device cpu --quick       # rehearse without a GPU
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # the checkout need not be installed
    sys.path.insert(0, str(ROOT))

from gpu_lane.children import run_step  # noqa: E402
from gpu_lane.summary import judge  # noqa: E402

#: Each step: its module, its function, and its time limit (s).
STEPS = {
    "environment": ("results", "environment", 120),
    "kernels": ("results", "kernels", 150),
    "agreement": ("results", "agreement", 90),
    "streams": ("results", "streams", 40),
    "cold": ("speed", "cold", 60),
    "direct": ("speed", "direct", 120),
    "profile": ("speed", "one_event", 60),
    "fused": ("fused", "fused", 120),
    "memory": ("speed", "memory", 60),
    "invalid": ("fused", "invalid", 60),
    "tests": ("programs", "tests", 90),
    "sanitizer": ("programs", "sanitize", 180),
    "triton": ("triton", "serve", 150),
}
_NEEDS_GPU = ("streams", "memory", "tests", "sanitizer")
#: Time limit of the whole run (s), and the time that is reserved for each later step (s).
_ALL_SECONDS = 530.0
_KEPT_FOR_EACH = 15.0


def main() -> None:
    """Run the requested steps, or the one step of this process."""
    options = _options()
    # So that a step that is stopped also stops the processes that it started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if options.step:
        _run_here(options)
        return
    begin = time.monotonic()
    lines: list[dict[str, Any]] = []

    def tell(line: dict[str, Any]) -> None:
        lines.append(line)
        step, *facts = line.items()
        print(json.dumps(dict([step, ("at_s", round(time.monotonic() - begin, 1)), *facts])), flush=True)

    with tempfile.TemporaryDirectory(prefix="exatrkx-gpu-") as folder:
        _run_all(options, folder, begin, tell)
    verdicts = judge(lines, on_gpu=options.device.startswith("cuda"))
    tell({"step": "summary", "device": options.device, "quick": options.quick, **verdicts})
    sys.exit(1 if False in verdicts.values() else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="as torch calls it; cpu rehearses without a GPU")
    parser.add_argument("--quick", action="store_true", help="small events and short measurements")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), help="run these steps alone")
    parser.add_argument("--triton", type=Path, metavar="TAR", help="the packed server of pack_triton.sh")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.triton and not options.triton.exists():
        parser.error(f"{options.triton} does not exist; make it with benchmarks/pack_triton.sh")
    return options


def _run_all(options: argparse.Namespace, folder: str, begin: float, tell: Any) -> None:
    same = ["--device", options.device, *(["--quick"] if options.quick else [])]
    same += ["--triton", str(options.triton.resolve())] if options.triton else []
    steps = [step for step in STEPS if step in options.only]
    for number, step in enumerate(steps, 1):
        if reason := _pointless(step, options):
            tell({"step": step, "not_run": reason})
            continue
        left = begin + _ALL_SECONDS - time.monotonic() - _KEPT_FOR_EACH * (len(steps) - number)
        if left < _KEPT_FOR_EACH:
            tell({"step": step, "failed": f"no time was left of {_ALL_SECONDS:g} s"})
            continue
        argv = [sys.executable, str(Path(__file__).resolve()), "--step", step, "--folder", folder, *same]
        run_step(step, argv, env=_environment(folder), seconds=min(STEPS[step][2], left), tell=tell)


def _pointless(step: str, options: argparse.Namespace) -> str:
    """Return the reason why a step is not run here, or ''."""
    if step in _NEEDS_GPU and not options.device.startswith("cuda"):
        return "needs a GPU"
    if step == "triton" and not options.triton:
        return "no packed server was given; see benchmarks/pack_triton.sh"
    return ""


def _environment(folder: str) -> dict[str, str]:
    """Return this environment, changed so that a step's processes import the checkout and put temporary files here."""
    path = os.environ.get("PYTHONPATH")
    python_path = os.pathsep.join([str(ROOT), *([path] if path else [])])
    return {**os.environ, "PYTHONPATH": python_path, "TMPDIR": folder}


def _run_here(options: argparse.Namespace) -> None:
    faulthandler.enable()
    module, function, _ = STEPS[options.step]
    from gpu_lane.base import Lane, say

    lane = Lane(
        device=options.device,
        quick=options.quick,
        folder=options.folder,
        repository=ROOT / "model_repos" / "exatrkx",
        triton=options.triton,
    )
    try:
        lane.use()
        getattr(importlib.import_module(f"gpu_lane.{module}"), function)(lane)
    except Exception as error:  # the next step may still succeed
        traceback.print_exc()
        message = (str(error).strip().splitlines() or [""])[0]
        say(options.step, failed=f"{type(error).__name__}: {message}")
        sys.exit(1)


if __name__ == "__main__":
    main()
