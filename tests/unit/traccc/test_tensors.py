"""Tracks and cells as tensors and back: separators, the smallest results, and tensors that do not fit each other."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from cell_events import NOWHERE, PIXELS, cells_of

from exatrkx_hpc.traccc.detector import UnknownModule, generic_detector
from exatrkx_hpc.traccc.tensors import OUTPUTS, pack_tracks, read_buffer, read_cells, unpack_tracks, write_buffer
from exatrkx_hpc.traccc.tracks import Tracks, no_tracks
from exatrkx_hpc.tracking.tensors import BadTensor

DETECTOR = generic_detector()
FIELDS = ("parameters", "lengths", "measurements", "covariances", "geometry_ids")


def tracks_of(*lengths: int, ids: list[int] | None = None) -> Tracks:
    """Return tracks of these lengths; a track's parameters are the smoothed ones at its first measurement."""
    rng = np.random.default_rng(len(lengths))
    total = sum(lengths)
    first = np.cumsum(lengths) - lengths
    measurements = rng.normal(size=(total, 6)).astype(np.float32)
    parameters = rng.normal(size=(len(lengths), 8)).astype(np.float32)
    parameters[:, 4:] = measurements[first.astype(np.int64), 2:]
    return Tracks(
        parameters=parameters,
        lengths=np.array(lengths, dtype=np.int64),
        measurements=measurements,
        covariances=rng.normal(size=(total, 25)).astype(np.float32),
        geometry_ids=np.array(ids or range(1, total + 1), dtype=np.int64),
    )


def outputs_of(tracks: Tracks) -> dict[str, np.ndarray]:
    return dict(zip(OUTPUTS, pack_tracks(tracks), strict=True))


def assert_same(one: Tracks, other: Tracks) -> None:
    for name in FIELDS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("lengths", [(3,), (3, 4), (5, 3, 3), (1, 1, 1)])
def test_tracks_come_back_as_they_were(lengths):
    tracks = tracks_of(*lengths)
    packed = outputs_of(tracks)
    shapes = [packed[name].shape for name in OUTPUTS]
    total = sum(lengths)
    assert shapes == [(len(lengths), 8), (total, 6), (total, 25), (total + len(lengths) - 1,)]
    assert packed["GEOMETRY_IDS"][-1] != 0, "there is no separator after the last track"
    assert (packed["GEOMETRY_IDS"] == 0).sum() == len(lengths) - 1
    assert_same(unpack_tracks(packed), tracks)
    column = packed | {"GEOMETRY_IDS": packed["GEOMETRY_IDS"].reshape(-1, 1)}
    assert_same(unpack_tracks(column), tracks)


def test_an_example_in_numbers():
    packed = outputs_of(tracks_of(3, 2, ids=[11, 12, 13, 21, 22]))
    assert packed["GEOMETRY_IDS"].tolist() == [11, 12, 13, 0, 21, 22]
    assert packed["GEOMETRY_IDS"].dtype == np.int64


def test_no_tracks_are_four_empty_tensors():
    packed = outputs_of(no_tracks())
    assert [packed[name].shape for name in OUTPUTS] == [(0, 8), (0, 6), (0, 25), (0,)]
    assert packed["GEOMETRY_IDS"].dtype == np.int64
    assert_same(unpack_tracks(packed), no_tracks())


@pytest.mark.parametrize(
    "ids",
    [
        [0, 1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 6, 0],
        [1, 2, 0, 0, 5, 6, 7],
        [0, 0, 0, 0, 0, 0, 0],
    ],
)
def test_an_id_that_is_0_is_no_separator(ids):
    tracks = tracks_of(3, 4, ids=ids)
    assert_same(unpack_tracks(outputs_of(tracks)), tracks)
    alone = tracks_of(7, ids=ids)
    assert_same(unpack_tracks(outputs_of(alone)), alone)


def test_an_end_that_is_not_certain_is_refused():
    tracks = tracks_of(3, 4, ids=[0] * 7)
    packed = outputs_of(tracks)
    packed["MEASUREMENTS"] = np.ones_like(packed["MEASUREMENTS"])
    packed["TRK_PARAMS"] = np.ones_like(packed["TRK_PARAMS"])
    with pytest.raises(BadTensor, match="has 8 zeros for 2 tracks, and the start of track 1 fits 6 of them"):
        unpack_tracks(packed)


BAD_OUTPUTS = [
    ({"TRK_PARAMS": np.zeros((2, 7), np.float32)}, r"TRK_PARAMS is float32 \[2, 7\]; expected float32 \[N, 8\]"),
    ({"COVARIANCES": np.zeros((7, 25))}, "COVARIANCES is float64"),
    ({"COVARIANCES": np.zeros((6, 25), np.float32)}, "do not fit: TRK_PARAMS 2, MEASUREMENTS 7, COVARIANCES 6"),
    ({"GEOMETRY_IDS": np.arange(1, 8)}, "GEOMETRY_IDS 7; expected T, S, S and"),
    ({"GEOMETRY_IDS": np.ones((4, 2), np.int64)}, r"GEOMETRY_IDS is int64 \[4, 2\]"),
    ({"GEOMETRY_IDS": np.ones(8, np.float32)}, "GEOMETRY_IDS is float32"),
    ({"GEOMETRY_IDS": np.arange(1, 9)}, "0 zeros for 2 tracks"),
    ({"GEOMETRY_IDS": np.array([0, 1, 2, 3, 4, 5, 6, 7])}, "track 0 has no measurement"),
    ({"TRK_PARAMS": np.zeros((0, 8), np.float32)}, "do not fit"),
]


@pytest.mark.parametrize("changed, told", BAD_OUTPUTS)
def test_tensors_that_do_not_fit_are_refused(changed, told):
    with pytest.raises(BadTensor, match=told):
        unpack_tracks(outputs_of(tracks_of(3, 4)) | changed)


POSITIONS, PROPERTIES = np.zeros((2, 4), np.int64), np.zeros((2, 2), np.float32)
BAD_CELLS = [
    (POSITIONS.astype(np.int32), PROPERTIES, r"CELL_POSITIONS is int32 \[2, 4\]; expected int64 \[N, 4\]"),
    (POSITIONS[:, :3], PROPERTIES, r"int64 \[2, 3\]"),
    (POSITIONS.reshape(-1), PROPERTIES, r"int64 \[8\]"),
    (POSITIONS, PROPERTIES.astype(np.float64), "CELL_PROPERTIES is float64"),
    (POSITIONS, PROPERTIES[:, :1], r"CELL_PROPERTIES has shape \[2, 1\]"),
    (POSITIONS, PROPERTIES[:1], "CELL_POSITIONS has 2 rows and CELL_PROPERTIES 1"),
    (POSITIONS, PROPERTIES * np.nan, "CELL_PROPERTIES has a NaN or an infinity in row 0"),
]


@pytest.mark.parametrize("positions, properties, told", BAD_CELLS)
def test_other_cells_are_refused(positions, properties, told):
    with pytest.raises(BadTensor, match=told):
        read_cells(positions, properties)


def test_the_raw_buffer_has_one_column_after_the_other():
    made = cells_of((PIXELS, 3, 4, 0.5), (PIXELS + (2 << 8), 5, 6, 0.25))
    made.properties[:, 0] = (1.5, 2.5)
    first = int(DETECTOR.numbers(np.array([PIXELS]))[0])
    expected = struct.pack("<Q2I2I2f2f2I", 2, 3, 5, 4, 6, 0.5, 0.25, 1.5, 2.5, first, first + 2)
    buffer = write_buffer(made, DETECTOR)
    assert (buffer.dtype, buffer.tobytes()) == (np.uint8, expected)
    back = read_buffer(buffer, DETECTOR)
    assert np.array_equal(back.positions, made.positions)
    assert np.array_equal(back.properties, made.properties)
    assert (back.positions.dtype, back.properties.dtype) == (np.int64, np.float32)


def test_an_empty_raw_buffer_has_its_count_alone():
    empty = write_buffer(cells_of(), DETECTOR)
    assert empty.tobytes() == bytes(8)
    assert read_buffer(empty, DETECTOR).positions.shape == (0, 4)


def raw(count: int, *values: int) -> np.ndarray:
    return np.frombuffer(struct.pack(f"<Q{len(values)}I", count, *values), dtype=np.uint8)


BAD_BUFFERS = [
    (np.zeros(7, np.uint8), "CELLS has 7 bytes; expected 8"),
    (np.zeros(0, np.uint8), "CELLS has 0 bytes"),
    (np.zeros(28, np.int8), r"CELLS is int8 \[28\]; expected uint8"),
    (np.zeros((28, 1), np.uint8), r"CELLS is uint8 \[28, 1\]"),
    (raw(2, 0, 0, 0, 0, 0), "CELLS has 28 bytes for 2 cells; expected 48"),
    (raw(2**64 - 1), "for 18446744073709551615 cells"),
    (raw(1, 0, 0, 0x7FC00000, 0, 0), "has a NaN"),
]


@pytest.mark.parametrize("buffer, told", BAD_BUFFERS)
def test_other_buffers_are_refused(buffer, told):
    with pytest.raises(BadTensor, match=told):
        read_buffer(buffer, DETECTOR)


def test_an_unknown_module_is_named():
    with pytest.raises(
        UnknownModule, match="module index 18728 in row 0 is not a module of this detector, which has 18728"
    ):
        read_buffer(raw(1, 0, 0, 0, 0, len(DETECTOR.ids)), DETECTOR)
    with pytest.raises(UnknownModule, match=str(NOWHERE)):
        write_buffer(cells_of((NOWHERE, 0, 0)), DETECTOR)
    with pytest.raises(ValueError, match="channel is negative"):
        write_buffer(cells_of((PIXELS, -1, 0)), DETECTOR)
