"""Clustering: the cells of a module that touch, also at a corner, become one measurement.

pyacts has no public call for it. The result does not depend on the order of the cells. The position is the weighted
mean of the cells' centres, as the digitization of ACTS computes it (`ModuleClusters::squash`). The variance is the
detector's resolution for a cluster of this width, not ACTS's, which depends on the number of cells alone: its pulls
were 0.2 to 1.7 wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from exatrkx_hpc.traccc.cells import Cells, Float32, Float64, Int64
from exatrkx_hpc.traccc.detector import Detector
from exatrkx_hpc.tracking.tensors import BadTensor

#: The neighbours of a cell at (channel0, channel1); the other four are the same pairs seen from the other cell.
_HALF_OF_THE_NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """M measurements, ordered by module and by their first cell.

    `geometry_ids` `[M]` (int64); `local` `[M, 2]`, the position on the plane of the module (mm), and `variance`
    `[M, 2]` (mm^2), both float64. `cluster` `[N]` (int64) is the number of the measurement that each cell belongs to.
    """

    geometry_ids: Int64
    local: Float64
    variance: Float64
    cluster: Int64

    def __len__(self) -> int:
        return len(self.geometry_ids)


def cluster_cells(cells: Cells, detector: Detector) -> Measurements:
    """Return the measurements of an event.

    Raises BadTensor for impossible cells: UnknownModule, which names the first unknown geometry ID, or an error for a
    channel that the module does not have, for a cell that occurs twice, and for a value that is not a finite number of
    0 or more.
    """
    module = detector.numbers(cells.geometry_ids)
    _check(cells, detector.bins[module])
    key, steps = _keys(module, cells.channels, detector)
    order = np.argsort(key, kind="stable")
    _check_unique(key[order], order, cells)
    label = _components(key[order], steps)
    cluster = np.empty(len(cells), dtype=np.int64)
    cluster[order] = label
    # Sums run over the sorted cells, so that not even their rounding depends on the order in the event.
    first = np.unique(label, return_index=True)[1]
    modules = module[order][first]
    local, width = _shape(cells.channels[order], cells.values[order], label, len(first))
    return Measurements(
        geometry_ids=detector.ids[modules],
        local=detector.low[modules] + (local + 0.5) * detector.pitch[modules],
        variance=np.stack([_variance(detector, modules, width, axis) for axis in (0, 1)], axis=1),
        cluster=cluster,
    )


def _check(cells: Cells, bins: Int64) -> None:
    inside = ((cells.channels >= 0) & (cells.channels < bins)).all(axis=1)
    if not inside.all():
        row = int(np.argmin(inside))
        of = f"geometry id {cells.geometry_ids[row]} has {bins[row, 0]} x {bins[row, 1]} channels"
        raise BadTensor(f"channels {cells.channels[row].tolist()} in row {row} do not exist: {of}")
    good = np.isfinite(cells.values) & (cells.values >= 0)
    if not good.all():
        row = int(np.argmin(good))
        raise BadTensor(f"value {cells.values[row]:g} in row {row} is not a finite number of 0 or more")


def _keys(module: Int64, channels: Int64, detector: Detector) -> tuple[Int64, Int64]:
    """Return a number for each cell, and the difference of the numbers of two neighbours.

    A row of channels is one longer than its modules have, and a module has one row more, so that no cell is beside the
    first cell of the next row or module.
    """
    rows, columns = (detector.bins.max(axis=0) + 1).tolist()
    key = (module * rows + channels[:, 0]) * columns + channels[:, 1]
    return key, np.array([across * columns + along for across, along in _HALF_OF_THE_NEIGHBOURS])


def _check_unique(key: Int64, order: Int64, cells: Cells) -> None:
    twice = key[1:] == key[:-1]
    if twice.any():
        at = int(np.argmax(twice))
        first, second = sorted((int(order[at]), int(order[at + 1])))
        found = f"geometry id {cells.geometry_ids[first]}, channels {cells.channels[first].tolist()}"
        raise BadTensor(f"rows {first} and {second} are the same cell: {found}")


def _components(key: Int64, steps: Int64) -> Int64:
    """Return the cluster of each key; `key` is sorted, and clusters are numbered in the order of their first cells."""
    heads, tails = [], []
    for step in steps.tolist():
        place = np.minimum(np.searchsorted(key, key + step), len(key) - 1)
        (head,) = np.nonzero(key[place] == key + step)
        heads.append(head)
        tails.append(place[head])
    pairs = (np.concatenate(heads), np.concatenate(tails))
    graph = coo_array((np.ones(len(pairs[0]), dtype=np.bool_), pairs), shape=(len(key), len(key)))
    _, label = connected_components(graph, directed=False)
    # SciPy does not promise an order of the labels.
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    cluster: Int64 = rank[label.reshape(-1)]
    return cluster


def _shape(channels: Int64, values: Float32, cluster: Int64, count: int) -> tuple[Float64, Int64]:
    """Return each cluster's mean channels, weighted by the values, and its widths in channels, `[M, 2]` each."""
    weight = values.astype(np.float64)
    weight[(np.bincount(cluster, weight, count) <= 0)[cluster]] = 1.0  # a cluster without charge has a plain mean
    total = np.bincount(cluster, weight, count)
    mean = np.stack([np.bincount(cluster, weight * channels[:, axis], count) / total for axis in (0, 1)], axis=1)
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.full((count, 2), -1)
    np.minimum.at(low, cluster, channels)
    np.maximum.at(high, cluster, channels)
    return mean, high - low + 1


def _variance(detector: Detector, modules: Int64, width: Int64, axis: int) -> Float64:
    widest = detector.resolution.shape[2]
    variance: Float64 = detector.resolution[modules, axis, np.minimum(width[:, axis], widest) - 1] ** 2
    return variance
