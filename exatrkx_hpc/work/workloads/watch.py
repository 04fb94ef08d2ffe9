"""Warn once if the events of a caller seem to have other units than the service."""

from __future__ import annotations

import warnings

from exatrkx_hpc.work.workloads.base import Tensors, Workload


class Watch:
    """Looks at the first events of a caller, and warns once, as Python does; `said` is the warning, else nothing."""

    def __init__(self, workload: Workload) -> None:
        """Have seen nothing yet."""
        self._sample = workload.sampler() if workload.sampler is not None else None
        self.said = ""

    def look(self, inputs: Tensors) -> None:
        """Look at an event; after the first events this costs nothing."""
        if self.said or self._sample is None or self._sample.full:
            return
        self._sample.add(inputs)
        self.said = self._sample.doubt()
        if self.said:
            warnings.warn(f"{self.said}; see docs/guides/events.md", stacklevel=3)
