"""The perf_analyzer that the tests run: installed once into the folder that keeps what takes long to make."""

from __future__ import annotations

import fcntl

from exatrkx_hpc.measure.perf_analyzer import PerfAnalyzer
from exatrkx_hpc.measure.perf_analyzer_install import WHEEL, install
from images.triton_image import cache_folder


def perf_analyzer() -> PerfAnalyzer:
    """Return it, installed now (about 10 s and 45 MB) or before; raises MissingComponent when it cannot be had."""
    folder = cache_folder() / WHEEL.replace("==", "-")
    with (cache_folder() / "perf_analyzer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of a parallel run may want it at the same moment
        return install(folder)
