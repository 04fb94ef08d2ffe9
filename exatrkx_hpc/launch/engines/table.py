"""The engine of a farm, loaded from the module that `server.engine` selects."""

from __future__ import annotations

import functools
import importlib

from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.engines.base import ContainerEngine


@functools.cache
def engine_named(name: str) -> ContainerEngine:
    """Return the engine `name`, which must be in ENGINES."""
    found: ContainerEngine = importlib.import_module(ENGINES[name]).ENGINE
    return found


def engine_of(farm: Farm) -> ContainerEngine:
    """Return the engine that starts the servers of `farm`."""
    return engine_named(farm.server.engine)
