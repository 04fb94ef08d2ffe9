"""Inference without a server: the workload's function in the worker's process, with the interface of a client."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.work.inference.client import Answer
from exatrkx_hpc.work.workloads.base import DIRECT, Tensors, Workload, check_outputs


class Direct:
    """Runs a workload without a server, one event at a time; use it within one event loop."""

    def __init__(self, workload: Workload, repository: Path) -> None:
        """Begin to load the models of a repository; each `ask` raises the error of a failed load."""
        if workload.in_process is None:
            raise ConfigError(f"workload {workload.name} has no mode {DIRECT}; it needs a server")
        self._workload = workload
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self._infer = self._thread.submit(workload.in_process, repository)

    async def __aenter__(self) -> Direct:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, inputs: Tensors) -> Answer:
        """Return the answer for the inputs of an event, as `Client.ask` does.

        Raises InputError for invalid inputs, ModelError when the models cannot be loaded or refuse the inputs.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, inputs)

    def _ask(self, inputs: Tensors) -> Answer:
        infer = self._infer.result()  # loaded in this thread, before any event
        begin = time.monotonic()
        outputs = infer(inputs)
        seconds = time.monotonic() - begin
        check_outputs(self._workload, inputs, outputs, who=self._workload.name)
        return Answer(outputs=outputs, seconds=seconds, retries=0)
