"""Warn once if the events of a Python caller seem to have other units than the service."""

from __future__ import annotations

import warnings

from exatrkx_hpc.work.workloads.base import Tensors, Workload


class Watch:
    """Checks the first events of a caller and warns once with `warnings.warn`; `said` is the doubt, or empty."""

    def __init__(self, workload: Workload) -> None:
        """Begin with an empty sample."""
        self._sample = workload.sampler() if workload.sampler is not None else None
        self.said = ""

    def look(self, inputs: Tensors) -> None:
        """Check an event; after the first events, this returns at once."""
        if self.said or self._sample is None or self._sample.full:
            return
        self._sample.add(inputs)
        self.said = self._sample.doubt()
        if self.said:
            warnings.warn(f"{self.said}; see docs/guides/events.md", stacklevel=3)
