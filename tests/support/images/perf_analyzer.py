"""The perf_analyzer of the tests, installed once into the cache folder."""

from __future__ import annotations

import fcntl

from exatrkx_hpc.measure.perf_analyzer import PerfAnalyzer
from exatrkx_hpc.measure.perf_analyzer_install import WHEEL, install
from images.triton_image import cache_folder


def perf_analyzer() -> PerfAnalyzer:
    """Return it, and install it if needed (about 10 s and 45 MB); raises MissingComponent if that fails."""
    folder = cache_folder() / WHEEL.replace("==", "-")
    with (cache_folder() / "perf_analyzer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of a parallel run may install it at the same time
        return install(folder)
