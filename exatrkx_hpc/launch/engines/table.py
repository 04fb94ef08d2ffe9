"""The engine of a farm: what `server.engine` names, loaded from its module."""

from __future__ import annotations

import functools
import importlib

from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.engines.base import ContainerEngine


@functools.cache
def engine_named(name: str) -> ContainerEngine:
    """Return the engine that the configuration calls `name`, which is one of ENGINES."""
    found: ContainerEngine = importlib.import_module(ENGINES[name]).ENGINE
    return found


def engine_of(farm: Farm) -> ContainerEngine:
    """Return the engine that starts the servers of `farm`."""
    return engine_named(farm.server.engine)
