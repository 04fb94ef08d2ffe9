"""ACTS, as `pyacts` gives it: the GenericDetector, its field, and the handles that pass data between algorithms.

pyacts is an extra (`acts`) and is imported on the first use. Its units: mm, GeV, radian, and mm for times (c t), so
that 1 ns is 299.792458.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from exatrkx_hpc.traccc.detector import Detector

#: One nanosecond in ACTS's unit of time, mm: the speed of light.
NANOSECOND = 299.792458


class Handle(Protocol):
    """A data handle of ACTS, which writes an object to an event's whiteboard or reads it."""

    def __call__(self, *place: object) -> Any:  # noqa: ANN401 - a container of ACTS
        """Write an object (context, object), or read it (whiteboard)."""


class Acts:
    """The modules `acts` and `acts.examples`, the detector's geometry and its field.

    Raises ImportError without pyacts.
    """

    def __init__(self, detector: Detector) -> None:
        self.acts = importlib.import_module("acts")
        self.examples = importlib.import_module("acts.examples")
        # Not even ERROR: ACTS writes two such lines for each seed that leads nowhere.
        self.quiet = self.acts.logging.FATAL
        config = self.examples.GenericDetector.Config()
        config.logLevel = config.surfaceLogLevel = config.layerLogLevel = config.volumeLogLevel = self.quiet
        self.detector = self.examples.GenericDetector(config)
        self.geometry = self.detector.trackingGeometry()
        self.field_in_z = detector.field * self.acts.UnitConstants.T
        self.field = self.acts.ConstantBField(self.acts.Vector3(0.0, 0.0, self.field_in_z))
        # A handle belongs to an algorithm; this one is never run.
        self._owner = self.examples.IAlgorithm("handles", self.quiet)

    def writer(self, content: str, name: str) -> Handle:
        """Return the handle that puts a container of the class `content` on a whiteboard as `name`."""
        return self._handle(self.examples.WriteDataHandle, content, name)

    def reader(self, content: str, name: str) -> Handle:
        """Return the handle that reads what `writer`, or an algorithm, put on a whiteboard."""
        return self._handle(self.examples.ReadDataHandle, content, name)

    def _handle(self, kind: Callable[..., Any], content: str, name: str) -> Handle:
        handle = kind(self._owner, getattr(self.examples, content), name)
        handle.initialize(name)
        result: Handle = handle
        return result
