"""traccc: from the cells of an event to fitted tracks.

Services take cells in two ways, which the metadata of their model tells apart: the current contract of the public
service, and its raw buffer. Both answer with the same four tensors. A result is a table of tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from exatrkx_hpc.base.errors import InputError, ModelError
from exatrkx_hpc.traccc.cells import Cells
from exatrkx_hpc.traccc.detector import generic_detector
from exatrkx_hpc.traccc.tensors import CURRENT_INPUTS, OUTPUTS, RAW_INPUTS, unpack_tracks, write_buffer
from exatrkx_hpc.traccc.tracks import Tracks
from exatrkx_hpc.work.workloads.archive import decode_npz, encode_npz
from exatrkx_hpc.work.workloads.base import ModelTensors, Request, Tensor, Tensors, Workload
from exatrkx_hpc.work.workloads.cells_check import ModuleList, first_fault, read_modules
from exatrkx_hpc.work.workloads.cells_csv import POSITIONS, PROPERTIES, parse_cells

CELLS: Final = "cells"
#: The twin on a CPU, whose detector is the GenericDetector of ACTS, and the model of a site's own backend.
TWIN: Final = "traccc-cpu"
SITE_MODEL: Final = "traccc-gpu"

#: The tensors of each contract, as the metadata of a model has them.
_CURRENT: Final = dict(zip(CURRENT_INPUTS, ("INT64 [-1, 4]", "FP32 [-1, 2]"), strict=True))
_RAW: Final = dict(zip(RAW_INPUTS, ("UINT8 [-1]",), strict=True))
#: Inputs of the contracts that the public service had before.
_OLDER: Final = ({"GEOMETRY_ID", "FEATURES"}, {"FEATURES"})
_OUTPUTS: Final = {name: name for name in OUTPUTS}

Modules = Callable[[], ModuleList]


@lru_cache(maxsize=1)
def generic_modules() -> ModuleList:
    """Return the modules of the GenericDetector of ACTS, which the twin has."""
    detector = generic_detector()
    return ModuleList(name="the GenericDetector of ACTS", ids=detector.ids, bins=detector.bins)


def traccc_workload(name: str, *, model: str, modules: Path | None = None) -> Workload:
    """Return the workload `name` of cells for the model `model` of a site, for a workload file of the site.

    `modules` is a text file with the geometry IDs of the site's detector, one per line, in the order of the backend's
    module index. With it, a cell of an unknown module is refused before it is sent; a model of the raw contract needs
    it. Raises ConfigError, when the list is first used, for a file that is no such list.
    """

    @lru_cache(maxsize=1)
    def listed() -> ModuleList:
        assert modules is not None
        return read_modules(modules, name=f"the detector of {modules}")

    return _workload(name, model=model, modules=listed if modules is not None else None)


def tracks_of(outputs: Tensors) -> Tracks:
    """Return the tracks of a result of this workload."""
    fields = ("parameters", "lengths", "measurements", "covariances", "geometry_ids")
    return Tracks(**{name: outputs[name] for name in fields})


def _workload(name: str, *, model: str, modules: Modules | None) -> Workload:
    whole = Workload(
        name=name,
        item=CELLS,
        inputs=(
            Tensor(name="positions", dtype="int64", shape=(CELLS, 4), columns=POSITIONS),
            Tensor(
                name="properties",
                dtype="float32",
                shape=(CELLS, 2),
                columns=PROPERTIES,
                units="ns; charge, or path in silicon",
            ),
        ),
        outputs=(
            Tensor(name="parameters", dtype="float32", shape=("tracks", 8), units="mm, rad, e / GeV, mm (c t)"),
            Tensor(name="lengths", dtype="int64", shape=("tracks",), units="measurements of each track"),
            Tensor(name="measurements", dtype="float32", shape=("measurements", 6), units="mm, rad, e / GeV, mm (c t)"),
            Tensor(name="covariances", dtype="float32", shape=("measurements", 25)),
            Tensor(name="geometry_ids", dtype="int64", shape=("measurements",)),
        ),
        model=model,
        modes={"ensemble": (_current("{model}"),)},
        encode=encode_npz,
        decode=decode_npz,
        suffix=".npz",
        folder="tracks",
        check=lambda inputs: _check(inputs, modules),
        counts=_counts,
        recognise=lambda request, tensors: _recognised(request, tensors, modules),
        stem="-cells",
        rows="tracks",
        lengths="lengths",
        sample=(lambda random: _sample(random, modules())) if modules is not None else None,
    )
    return replace(whole, parsers={"csv": lambda path, data: _parse(path, data, modules)})


def _parse(path: Path, data: bytes, modules: Modules | None) -> Tensors:
    positions, properties = parse_cells(path, data, modules() if modules is not None else None)
    return {"positions": positions, "properties": properties}


def _check(inputs: Tensors, modules: Modules | None) -> None:
    positions, properties = inputs["positions"], inputs["properties"]
    if not len(positions):
        raise InputError("the event has no cells; leave it out, or write it again")
    if (fault := first_fault(positions, properties, modules() if modules is not None else None)) is not None:
        row, why = fault
        raise InputError(f"row {row}: {why}")


def _counts(outputs: Tensors) -> Mapping[str, int]:
    return {"tracks": len(outputs["parameters"]), "measurements": len(outputs["measurements"])}


def _sample(random: np.random.Generator, modules: ModuleList) -> Tensors:
    """Return two neighbouring cells on each of some modules: enough for measurements, not for a track."""
    chosen = random.choice(modules.ids, size=min(3, len(modules.ids)), replace=False)
    rows = np.arange(2 * len(chosen))
    positions = np.stack([chosen[rows // 2], rows // 2, rows % 2, np.zeros_like(rows)], axis=1)
    return {"positions": positions, "properties": np.tile(np.array([0.0, 0.1], dtype=np.float32), (len(rows), 1))}


def _current(model: str) -> Request:
    inputs = dict(zip(CURRENT_INPUTS, ("positions", "properties"), strict=True))
    return Request(model=model, inputs=inputs, outputs=_OUTPUTS, unpack=_unpack)


def _raw(model: str, modules: ModuleList) -> Request:
    def pack(tensors: Tensors) -> Tensors:
        cells = Cells(positions=tensors["positions"], properties=tensors["properties"])
        return {"buffer": write_buffer(cells, modules)}

    return Request(model=model, inputs={RAW_INPUTS[0]: "buffer"}, outputs=_OUTPUTS, pack=pack, unpack=_unpack)


def _unpack(tensors: Tensors) -> Tensors:
    """Return the tracks of the answer; raises BadTensor, a ValueError, if its tensors do not fit each other."""
    tracks: dict[str, Any] = vars(unpack_tracks(tensors))
    return dict(tracks)


def _recognised(request: Request, tensors: ModelTensors, modules: Modules | None) -> Request:
    """Return the request in the contract of the model; raise ModelError for a contract that is not known."""
    found, model = dict(tensors.inputs), request.model
    if missing := [name for name in OUTPUTS if name not in tensors.outputs]:
        raise ModelError(
            f"{model} has no output {missing[0]} (it has: {', '.join(tensors.outputs)}); a model of traccc has "
            f"{', '.join(OUTPUTS)}: choose another --model, or update the backend of the service"
        )
    if found == _CURRENT:
        return _current(model)
    if found == _RAW and modules is None:
        raise ModelError(
            f"{model} takes the raw buffer, which numbers the modules of the detector, and workload traccc-gpu has no "
            "list of them; make a workload file with traccc_workload(..., modules=FILE), see docs/traccc.md"
        )
    if found == _RAW and modules is not None:
        return _raw(model, modules())
    what = "an older contract of traccc" if set(found) in _OLDER else "no contract of traccc"
    raise ModelError(
        f"{model} takes {_shown(found)}, {what}; known are {_shown(_CURRENT)} (current) and {_shown(_RAW)} (raw "
        "buffer): choose another --model, or update the backend of the service"
    )


def _shown(tensors: Mapping[str, str]) -> str:
    return " with ".join(f"{name} {kind}" for name, kind in tensors.items())


#: For the twin. A site's own backend has a detector that this program does not know; see `traccc_gpu.py`.
WORKLOAD: Final = _workload("traccc", model=TWIN, modules=generic_modules)
