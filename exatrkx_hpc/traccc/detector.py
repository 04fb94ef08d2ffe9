"""The detector of the twin: its modules, the channels on each, and the IDs by which events name the modules.

Two files describe it. `generic_modules.json` counts the modules of each layer. `generic_digitization.json` is a
digitization configuration of ACTS, which the simulation and the clustering share. Both belong to the GenericDetector
of ACTS; the pitches are those of the TrackML detector (Amrouche et al., arXiv:1904.06778): 50 um x 50 um pixels,
80 um x 1.2 mm short strips and 120 um x 10.8 mm long strips. Its key `resolution`, which ACTS ignores, has the standard
deviation (mm) of a position by the width of the cluster in channels; it was measured on simulated clusters of one
particle, and the last number, which is also for wider clusters, allows for those of several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from exatrkx_hpc.traccc.cells import Float64, Int64
from exatrkx_hpc.tracking.tensors import BadTensor

_FOLDER = Path(__file__).parent
MODULES_FILE = _FOLDER / "generic_modules.json"
DIGITIZATION_FILE = _FOLDER / "generic_digitization.json"

#: Where ACTS keeps the volume, the layer and the number of a module in a geometry ID (GeometryIdentifier.hpp).
_VOLUME, _LAYER, _MODULE = 56, 36, 8


class UnknownModule(BadTensor):
    """An ID, or a number, that no module of the detector has; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """K modules in ascending order of their IDs; lengths are in mm, on the plane of the module.

    `ids` `[K]` (int64); for the two channels of each module: the number of channels `bins` `[K, 2]` (int64), the
    `pitch` `[K, 2]` and the edge of the first channel `low` `[K, 2]` (float64), and the `resolution` `[K, 2, W]`
    (float64) of a cluster that is 1, 2, ... or at least W channels wide. `field` is the solenoid's field along z
    in tesla; `seeding_volumes` are the volumes whose measurements start tracks.
    """

    ids: Int64
    bins: Int64
    pitch: Float64
    low: Float64
    resolution: Float64
    field: float
    seeding_volumes: tuple[int, ...]

    @property
    def volumes(self) -> tuple[int, ...]:
        """The volumes of the detector, in ascending order."""
        return tuple(np.unique(self.ids >> _VOLUME).tolist())

    def numbers(self, geometry_ids: Int64) -> Int64:
        """Return the number of each module, 0 to K - 1. Raises UnknownModule, which names the first unknown ID."""
        number = np.searchsorted(self.ids, geometry_ids)
        known = self.ids[np.minimum(number, len(self.ids) - 1)] == geometry_ids
        if not known.all():
            row = int(np.argmin(known))
            raise UnknownModule(f"geometry id {geometry_ids[row]} in row {row} is not a module of this detector")
        return number


@lru_cache(maxsize=1)
def generic_detector() -> Detector:
    """Return the GenericDetector of ACTS, as the two files of this folder describe it."""
    return read_detector(MODULES_FILE, DIGITIZATION_FILE)


def read_detector(modules: Path, digitization: Path) -> Detector:
    """Read a detector from its two files.

    Raises OSError for a file that cannot be read, and ValueError for one with other content, or if a module has no
    digitization.
    """
    try:
        return _parse(json.loads(modules.read_bytes()), json.loads(digitization.read_bytes()))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{modules} and {digitization} do not describe a detector: {error!r}") from error


def _parse(modules: Any, digitization: Any) -> Detector:  # noqa: ANN401 - as JSON gives it
    ids = np.array(sorted(_ids(modules["modules"])), dtype=np.int64)
    bins = np.zeros((len(ids), 2), dtype=np.int64)
    edges = np.zeros((len(ids), 2, 2))
    widest = max(len(values) for entry in digitization["entries"] for values in entry["value"]["resolution"])
    resolution = np.zeros((len(ids), 2, widest))
    # A later entry is valid for fewer modules, as in ACTS: a volume, one of its layers, one of that layer's modules.
    for entry in sorted(digitization["entries"], key=len):
        axes = entry["value"]["geometric"]["segmentation"]["binningdata"]
        chosen = _matches(ids, entry)
        bins[chosen] = [axis["bins"] for axis in axes]
        edges[chosen] = [(axis["min"], axis["max"]) for axis in axes]
        resolution[chosen] = [values + values[-1:] * (widest - len(values)) for values in entry["value"]["resolution"]]
    if not bins.all():
        raise ValueError(f"module {ids[np.argmin(bins.all(axis=1))]} has no digitization")
    return Detector(
        ids=ids,
        bins=bins,
        pitch=(edges[..., 1] - edges[..., 0]) / bins,
        low=edges[..., 0],
        resolution=resolution,
        field=float(modules["field_tesla"]),
        seeding_volumes=tuple(modules["seeding_volumes"]),
    )


def _ids(modules: dict[str, dict[str, int]]) -> Iterator[int]:
    for volume, layers in modules.items():
        for layer, count in layers.items():
            first = (int(volume) << _VOLUME) | (int(layer) << _LAYER)
            yield from (first | (number << _MODULE) for number in range(1, count + 1))


def _matches(ids: Int64, entry: dict[str, Any]) -> Any:  # noqa: ANN401 - an array of booleans
    chosen = np.ones(len(ids), dtype=np.bool_)
    for name, shift, width in (("volume", _VOLUME, 8), ("layer", _LAYER, 12), ("sensitive", _MODULE, 20)):
        if name in entry:
            chosen &= (ids >> shift) & ((1 << width) - 1) == entry[name]
    return chosen
