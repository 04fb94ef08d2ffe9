"""Labels without a server: the pipeline in the worker's own process, asked as a client is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.models.pipeline import load_tracker
from exatrkx_hpc.work.events.given_hits import checked_hits
from exatrkx_hpc.work.inference.client import Answer

Tracker = Callable[[NDArray[np.float32]], NDArray[np.int64]]


class Direct:
    """The pipeline of one model repository, one event at a time; use it within one event loop."""

    def __init__(self, repository: Path) -> None:
        """Begin to load the weights; what is wrong with them is said to each `ask`."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self._tracker = self._thread.submit(load_tracker, repository)

    async def __aenter__(self) -> Direct:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, hits: ArrayLike) -> Answer:
        """Return the labels of hits `[N, 3]`, as `Client.ask` does, and the seconds that the pipeline took.

        Raises InputError for hits that are no finite `[N, 3]` numbers, ModelError when the pipeline cannot be
        loaded or refuses them.
        """
        features = checked_hits(hits)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, features)

    def _find(self, features: NDArray[np.float32]) -> Answer:
        tracker: Tracker = self._tracker.result()  # loaded in this very thread, before any event
        begin = time.monotonic()
        labels = tracker(features)
        return Answer(labels=labels, seconds=time.monotonic() - begin, retries=0)
