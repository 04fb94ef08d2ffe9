"""Cells that a service of traccc cannot use: the first of an event, and why.

The public backend ends its server at a geometry ID that it does not know, so such an event must not be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.base.whole_numbers import whole_numbers

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

#: The raw buffer holds a channel in 32 bits.
_CHANNELS = 2**32


@dataclass(frozen=True, kw_only=True)
class ModuleList:
    """The K modules of a detector: its `name`, their geometry IDs `[K]` in the order of their numbers.

    `bins` `[K, 2]` are the numbers of channels of each module, None if they are not known.
    """

    name: str
    ids: Int64
    bins: Int64 | None = None

    @cached_property
    def _order(self) -> Int64:
        return np.argsort(self.ids, kind="stable")

    def known(self, geometry_ids: Int64) -> NDArray[np.bool_]:
        """Return whether each ID is one of a module."""
        known: NDArray[np.bool_] = self.ids[self.numbers(geometry_ids)] == geometry_ids
        return known

    def numbers(self, geometry_ids: Int64) -> Int64:
        """Return the number of each module; that of an unknown one has no meaning."""
        place = np.searchsorted(self.ids, geometry_ids, sorter=self._order)
        numbers: Int64 = self._order[np.minimum(place, len(self.ids) - 1)]
        return numbers


def read_modules(path: Path, *, name: str) -> ModuleList:
    """Return the modules of the detector `name` from a text file: one geometry ID per line, in order.

    Raises ConfigError for a file that cannot be read, a line that is no ID, no line, and an ID that occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
        ids = whole_numbers(lines, first=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a list of modules ({error}); write one geometry ID per line") from error
    if not len(ids):
        raise ConfigError(f"{path} has no module; write one geometry ID per line")
    ids = ids.astype(np.int64)
    unique, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise ConfigError(f"{path} has the geometry ID {unique[count > 1][0]} twice; each module has a line of its own")
    return ModuleList(name=name, ids=ids)


def first_fault(positions: Int64, properties: NDArray[Any], modules: ModuleList | None) -> tuple[int, str] | None:
    """Return the row of the first cell that cannot be used, and why; None if all can be used.

    `positions` `[N, 4]` are geometry_id, measurement_id, channel0, channel1; `properties` `[N, 2]` are timestamp and
    value. Without `modules`, any geometry ID is good.
    """
    ids, channels = positions[:, 0], positions[:, 2:]
    finite = np.isfinite(properties)
    inside = (channels >= 0) & (channels < _CHANNELS)
    checks: list[tuple[NDArray[np.bool_], Callable[[int], str]]] = [
        (~finite[:, 0], lambda row: f"the timestamp is {properties[row, 0]:g}, not a finite number"),
        (
            ~(finite[:, 1] & (properties[:, 1] >= 0)),
            lambda row: f"the value is {properties[row, 1]:g}, not a finite number of 0 or more",
        ),
        (~inside.all(axis=1), lambda row: f"the channels are {_pair(channels[row])}; expected 0 to 2^32 - 1"),
    ]
    if modules is not None:
        of = modules
        checks.append((~of.known(ids), lambda row: _unknown(int(ids[row]), of)))
        if of.bins is not None:
            bins = of.bins[of.numbers(ids)]
            beyond = (channels >= bins).any(axis=1) & inside.all(axis=1) & of.known(ids)
            checks.append((beyond, lambda row: _beyond(int(ids[row]), channels[row], bins[row])))
    faults = [(int(np.argmax(bad)), told) for bad, told in checks if bad.any()]
    if faults:
        row, told = min(faults, key=lambda one: one[0])
        return row, told(row)
    return _repeated(ids, channels)


def _repeated(ids: Int64, channels: Int64) -> tuple[int, str] | None:
    order = np.lexsort((channels[:, 1], channels[:, 0], ids))
    table = np.column_stack([ids, channels])[order]
    same = (table[1:] == table[:-1]).all(axis=1)
    if not same.any():
        return None
    # The sort is stable: of two equal cells, the later row comes second.
    row = int(order[1:][same].min())
    return (
        row,
        f"the cell ({_pair(channels[row])}) of geometry_id {ids[row]} occurs twice; keep one",
    )


def _pair(channels: Int64) -> str:
    return f"{channels[0]}, {channels[1]}"


def _unknown(geometry_id: int, modules: ModuleList) -> str:
    return (
        f"geometry_id {geometry_id} is not a module of {modules.name}; send events of another detector to the service "
        "of that detector"
    )


def _beyond(geometry_id: int, channels: Int64, bins: Int64) -> str:
    return f"the channels are {_pair(channels)}; the module {geometry_id} has {bins[0]} x {bins[1]} channels"
