"""Cells and tracks as tensors of the service: the public contract of traccc, and its raw buffer.

GEOMETRY_IDS alone has a 0 between two tracks, but none after the last one, so it is longer than MEASUREMENTS and
COVARIANCES by the number of tracks less one. It has rank 1, whatever its configuration says.

An ID that is 0 looks like a separator. No detector known to use this contract has one. If a result has more zeros than
separators, a separator is where the next measurement has the parameters of the next track, because those of a track are
the smoothed ones at its first measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.traccc.cells import POSITIONS, PROPERTIES, Cells, Int64
from exatrkx_hpc.traccc.detector import Detector, UnknownModule
from exatrkx_hpc.traccc.tracks import MEASUREMENTS, PARAMETERS, Tracks, no_tracks
from exatrkx_hpc.tracking.tensors import BadTensor, check_table

Array = NDArray[Any]
UInt8 = NDArray[np.uint8]

#: The input tensors of the current contract and of the raw one, and the outputs of both.
CURRENT_INPUTS = ("CELL_POSITIONS", "CELL_PROPERTIES")
RAW_INPUTS = ("CELLS",)
OUTPUTS = ("TRK_PARAMS", "MEASUREMENTS", "COVARIANCES", "GEOMETRY_IDS")

#: The raw buffer: the number of cells, then one column after the other, little-endian.
_COUNT = np.dtype("<u8")
_COLUMNS = (("channel0", "<u4"), ("channel1", "<u4"), ("activation", "<f4"), ("time", "<f4"), ("module_index", "<u4"))
_CELL_BYTES = 20


def read_cells(positions: Array, properties: Array) -> Cells:
    """Return the cells of the tensors CELL_POSITIONS, int64 `[N, 4]`, and CELL_PROPERTIES, float32 `[N, 2]`.

    Raises BadTensor for another type or shape, for two lengths, and for numbers that are not finite.
    """
    if positions.dtype != np.int64 or positions.ndim != 2 or positions.shape[1] != len(POSITIONS):
        found = f"{positions.dtype} {list(positions.shape)}"
        raise BadTensor(f"CELL_POSITIONS is {found}; expected int64 [N, {len(POSITIONS)}]: {', '.join(POSITIONS)}")
    check_table("CELL_PROPERTIES", properties, columns=len(PROPERTIES))
    if len(positions) != len(properties):
        found = f"CELL_POSITIONS has {len(positions)} rows and CELL_PROPERTIES {len(properties)}"
        raise BadTensor(f"{found}; expected one of each for every cell")
    return Cells(positions=positions, properties=properties)


def read_buffer(buffer: Array, detector: Detector) -> Cells:
    """Return the cells of the tensor CELLS, uint8 `[8 + 20 N]`, whose module index is the number of the module.

    Raises BadTensor for another type, shape or length, for numbers that are not finite, and UnknownModule for an index
    that the detector does not have.
    """
    if buffer.dtype != np.uint8 or buffer.ndim != 1:
        raise BadTensor(f"CELLS is {buffer.dtype} {list(buffer.shape)}; expected uint8 [8 + 20 N]")
    data = buffer.tobytes()
    if len(data) < _COUNT.itemsize:
        raise BadTensor(f"CELLS has {len(data)} bytes; expected 8 for the number of cells, and 20 a cell")
    count = int(np.frombuffer(data, _COUNT, count=1)[0])
    if len(data) != (wanted := _COUNT.itemsize + _CELL_BYTES * count):
        raise BadTensor(f"CELLS has {len(data)} bytes for {count} cells; expected {wanted}")
    columns = {
        name: np.frombuffer(data, kind, count=count, offset=_COUNT.itemsize + 4 * count * place)
        for place, (name, kind) in enumerate(_COLUMNS)
    }
    properties = np.stack([columns["time"], columns["activation"]], axis=1).astype(np.float32)
    check_table("CELLS (time, activation)", properties, columns=2)
    known = columns["module_index"] < len(detector.ids)
    if not known.all():
        row = int(np.argmin(known))
        found = f"module index {columns['module_index'][row]} in row {row}"
        raise UnknownModule(f"{found} is not a module of this detector, which has {len(detector.ids)}")
    module = detector.ids[columns["module_index"]]
    channels = (columns[name].astype(np.int64) for name in ("channel0", "channel1"))
    return Cells(positions=np.stack([module, np.zeros_like(module), *channels], axis=1), properties=properties)


class Numbers(Protocol):
    """What knows the number of each module: a `Detector`, or a list of its geometry IDs."""

    def numbers(self, geometry_ids: Int64) -> Int64:
        """Return the number of each module."""


def write_buffer(cells: Cells, detector: Numbers) -> UInt8:
    """Return cells as the tensor CELLS, uint8 `[8 + 20 N]`; the measurement IDs have no place in it.

    Raises UnknownModule for a geometry ID that the detector does not have, and ValueError for a channel that is
    negative or needs more than 32 bits.
    """
    if len(cells) and not (cells.channels.min() >= 0 and cells.channels.max() < 2**32):
        raise ValueError("a channel is negative or needs more than 32 bits; the raw buffer cannot hold it")
    values = (*cells.channels.T, cells.values, cells.properties[:, 0], detector.numbers(cells.geometry_ids))
    columns = (array.astype(kind).tobytes() for array, (_, kind) in zip(values, _COLUMNS, strict=True))
    return np.frombuffer(b"".join([np.array(len(cells), dtype=_COUNT).tobytes(), *columns]), dtype=np.uint8)


def pack_tracks(tracks: Tracks) -> tuple[Array, Array, Array, Array]:
    """Return tracks as the tensors of OUTPUTS: float32 `[T, 8]`, `[S, 6]` and `[S, 25]`, int64 `[S + T - 1]`."""
    ids = np.insert(tracks.geometry_ids, tracks.first[1:], 0)
    return tracks.parameters, tracks.measurements, tracks.covariances, ids


def unpack_tracks(outputs: Mapping[str, Array]) -> Tracks:
    """Return the tracks of the tensors of OUTPUTS; GEOMETRY_IDS may also be `[S + T - 1, 1]`.

    Raises BadTensor if the tensors do not fit each other, or if it is not certain where a track ends.
    """
    for name, columns in zip(OUTPUTS[:3], (len(PARAMETERS), len(MEASUREMENTS), 25), strict=True):
        array = outputs[name]
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != columns:
            raise BadTensor(f"{name} is {array.dtype} {list(array.shape)}; expected float32 [N, {columns}]")
    parameters, measurements, covariances = (outputs[name] for name in OUTPUTS[:3])
    ids = outputs["GEOMETRY_IDS"]
    if ids.dtype != np.int64 or ids.ndim not in (1, 2) or ids.size != len(ids):
        raise BadTensor(f"GEOMETRY_IDS is {ids.dtype} {list(ids.shape)}; expected int64 [N]")
    ids = ids.reshape(-1)
    rows, n_tracks = len(measurements), len(parameters)
    if len(covariances) != rows or len(ids) != rows + max(n_tracks - 1, 0) or (rows > 0) != (n_tracks > 0):
        lengths = ", ".join(f"{name} {len(outputs[name])}" for name in OUTPUTS)
        raise BadTensor(f"the lengths do not fit: {lengths}; expected T, S, S and S + T - 1")
    if not n_tracks:
        return no_tracks()
    separators = _separators(ids, parameters, measurements)
    ends = np.append(separators, len(ids))
    lengths_of = np.diff(np.concatenate([[-1], ends])) - 1
    if not lengths_of.all():
        raise BadTensor(f"track {int(np.argmin(lengths_of))} has no measurement; expected one or more")
    return Tracks(
        parameters=parameters,
        lengths=lengths_of,
        measurements=measurements,
        covariances=covariances,
        geometry_ids=np.delete(ids, separators),
    )


def _separators(ids: Int64, parameters: Array, measurements: Array) -> Int64:
    """Return the places of the separators in GEOMETRY_IDS, one fewer than there are tracks."""
    zeros, n_tracks = np.flatnonzero(ids == 0), len(parameters)
    if len(zeros) == n_tracks - 1:
        return zeros
    places = []
    for track in range(1, n_tracks):
        # The first measurement after a separator at z is in row z + 1 - track: there are `track` separators before.
        row = zeros + 1 - track
        inside = (row > 0) & (row < len(measurements))
        start = measurements[np.where(inside, row, 0), 2:]
        fits = zeros[inside & (start == parameters[track, 4:]).all(axis=1)]
        if len(fits) != 1:
            told = f"GEOMETRY_IDS has {len(zeros)} zeros for {n_tracks} tracks"
            raise BadTensor(f"{told}, and the start of track {track} fits {len(fits)} of them; expected one")
        places.append(int(fits[0]))
    if (np.diff(places) <= 0).any():
        raise BadTensor(f"GEOMETRY_IDS has {len(zeros)} zeros for {n_tracks} tracks, in another order than the tracks")
    return np.array(places, dtype=np.int64)
