"""The workload of traccc: event files of cells, what is refused before it is sent, contracts, tables of tracks."""

from __future__ import annotations

import asyncio
import re
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cell_events import NOWHERE, PIXELS, cells_of

from exatrkx_hpc.base.errors import ConfigError, InputError, ModelError
from exatrkx_hpc.traccc.simulation.files import cells_as_csv
from exatrkx_hpc.traccc.tensors import OUTPUTS, pack_tracks, read_buffer
from exatrkx_hpc.traccc.tracks import Tracks
from exatrkx_hpc.work.events.source import PassedOver, Reader, find_events, scan_events
from exatrkx_hpc.work.inference.channel import Reply
from exatrkx_hpc.work.inference.check_workload import check_workload
from exatrkx_hpc.work.inference.client import Client, Unanswered
from exatrkx_hpc.work.inference.retry import Cause, RequestFailed
from exatrkx_hpc.work.results.parts import part_bytes, part_file, read_part, require_parts
from exatrkx_hpc.work.results.read import FoundResults
from exatrkx_hpc.work.workloads.base import ModelTensors
from exatrkx_hpc.work.workloads.given import as_tensors
from exatrkx_hpc.work.workloads.table import workload, workload_of
from exatrkx_hpc.work.workloads.traccc import WORKLOAD, generic_modules, traccc_workload, tracks_of

HEADER = "geometry_id,measurement_id,channel0,channel1,timestamp,value"
GOOD = f"{PIXELS},0,5,6,0.5,0.25"
CURRENT = {"CELL_POSITIONS": "INT64 [-1, 4]", "CELL_PROPERTIES": "FP32 [-1, 2]"}
RAW = {"CELLS": "UINT8 [-1]"}
WIRE = dict.fromkeys(OUTPUTS, "FP32 [-1, 8]")


def read(folder: Path, *lines: str, header: str = HEADER, of=WORKLOAD) -> dict[str, np.ndarray]:
    (folder / "evt-cells.csv").write_text("\n".join([header, *lines, ""]))
    return dict(Reader(of).read(*find_events(folder, workload=of)).tensors)


def some_tracks(*lengths: int) -> Tracks:
    n, rows = len(lengths), sum(lengths)
    measurements = np.arange(6 * rows, dtype=np.float32).reshape(rows, 6)
    starts = np.cumsum([0, *lengths])[:-1]
    parameters = np.zeros((n, 8), dtype=np.float32)
    parameters[:, 4:] = measurements[starts, 2:] if n else 0.0
    return Tracks(
        parameters=parameters,
        lengths=np.array(lengths, dtype=np.int64),
        measurements=measurements,
        covariances=np.full((rows, 25), 0.5, dtype=np.float32),
        geometry_ids=PIXELS + np.arange(rows, dtype=np.int64),
    )


def assert_same(found, wanted: Tracks) -> None:
    for name, array in vars(wanted).items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


def test_the_models_name_the_workload() -> None:
    assert workload_of("traccc-cpu").name == "traccc" and workload_of("traccc-gpu").name == "traccc-gpu"
    assert workload("traccc") is WORKLOAD
    assert [one.fault for one in check_workload(WORKLOAD)] == [""] * 4


def test_a_file_of_cells_has_the_tensors_of_the_service(tmp_path: Path) -> None:
    wanted = cells_of((PIXELS, 5, 6, 0.25), (PIXELS, 7, 8, 1e-7))
    (tmp_path / "evt-cells.csv").write_bytes(cells_as_csv(wanted))
    (event,) = find_events(tmp_path, workload=WORKLOAD)
    tensors = Reader(WORKLOAD).read(event).tensors
    assert event.name == "evt-cells"
    assert np.array_equal(tensors["positions"], wanted.positions) and tensors["positions"].dtype == np.int64
    assert np.array_equal(tensors["properties"], wanted.properties) and tensors["properties"].dtype == np.float32
    other = read(
        tmp_path, f"0.25,0.5,9,{PIXELS},0,5,6", header="value,timestamp,x,geometry_id,measurement_id,channel0,channel1"
    )
    assert other["positions"].tolist() == [[PIXELS, 0, 5, 6]] and other["properties"].tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((GOOD, f"{PIXELS},0,5,7,nan,1"), ":3: the timestamp is nan, not a finite number"),
        ((GOOD, f"{PIXELS},0,5,7,0,inf"), ":3: the value is inf, not a finite number of 0 or more"),
        ((GOOD, f"{PIXELS},0,5,7,0,1e39"), ":3: the value is inf"),
        ((f"{PIXELS},0,5,7,0,-1", GOOD), ":2: the value is -1, not a finite"),
        ((GOOD, f"{PIXELS},0,5,-7,0,1"), r":3: the channels are 5, -7; expected 0 to 2\^32 - 1"),
        ((f"{PIXELS},0,5,9999,0,1",), f":2: the channels are 5, 9999; the module {PIXELS} has 336 x 1440 channels"),
        ((GOOD, f"{PIXELS},0,7,7,0,1", GOOD), rf":4: the cell \(5, 6\) of geometry_id {PIXELS} occurs twice; keep one"),
        (
            (GOOD, f"{NOWHERE},0,1,1,0,1"),
            f":3: geometry_id {NOWHERE} is not a module of the GenericDetector of ACTS; send",
        ),
        ((), " has no cells; remove the file, or write the event again"),
        ((GOOD, "1,2,3"), ":3: 3 columns, not 6, as in the header; correct it"),
        ((GOOD, f"{PIXELS},0,5.5,7,0,1"), ":3: '5.5' is not an integer; the column channel0 holds 64-bit integers"),
        ((GOOD, f"{PIXELS},0,5,7,0,x"), ":3: 'x' is not a number; correct the column value"),
        ((f"{2**63},0,5,7,0,1",), f":2: geometry_id {2**63} does not fit into int64"),
    ],
)
def test_bad_cells_are_refused_with_file_and_line(tmp_path: Path, lines: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=f"evt-cells.csv{says}") as caught:
        read(tmp_path, *lines)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r":1: has no column value \(it has: geometry_id,.*\); expected the header geom"
    ):
        read(tmp_path, f"{PIXELS},0,5,6,0.5", header=HEADER.removesuffix(",value"))


def test_other_files_of_the_detector_are_no_events(tmp_path: Path) -> None:
    for name in ("e1-cells.csv", "e1-hits.csv", "e1-truth.csv", "notes.csv"):
        (tmp_path / name).write_text(f"{HEADER}\n{GOOD}\n")
    passed = PassedOver()
    assert [one.name for one in scan_events(tmp_path, "csv", workload=WORKLOAD, passed=passed)] == ["e1-cells"]
    assert passed.counts == {"companion": 3}
    (tmp_path / "e1-cells.csv").unlink()
    with pytest.raises(InputError, match=r"no events \(\*-cells\.csv, \*\.parquet\) in"):
        find_events(tmp_path, workload=WORKLOAD)


def test_cells_in_parquet_are_checked_too(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"geometry_id": [PIXELS, NOWHERE], "measurement_id": [0, 0], "channel0": [5, 5], "channel1": [6, 6]}
    table = pa.table({"event": ["a", "b"], **columns, "timestamp": [0.0, 0.0], "value": [1.0, 1.0]})
    pq.write_table(table, tmp_path / "events.parquet")
    good, bad = find_events(tmp_path, workload=WORKLOAD)
    reader = Reader(WORKLOAD)
    assert reader.read(good).tensors["positions"].tolist() == [[PIXELS, 0, 5, 6]]
    with pytest.raises(InputError, match=f"events.parquet: event b: row 0: geometry_id {NOWHERE} is not a module"):
        reader.read(bad)
    reader.close()


def test_an_event_from_python_is_checked_too() -> None:
    cells = cells_of((PIXELS, 1, 1), (PIXELS, 1, 1))
    with pytest.raises(InputError, match="row 1: the cell"):
        as_tensors(WORKLOAD, {"positions": cells.positions, "properties": cells.properties})
    none = {"positions": np.empty((0, 4), np.int64), "properties": np.empty((0, 2), np.float32)}
    with pytest.raises(InputError, match="the event has no cells"):
        as_tensors(WORKLOAD, none)


def test_a_site_gives_its_own_list_of_modules(tmp_path: Path) -> None:
    (tmp_path / "modules.txt").write_text("77\n12\n")
    site = traccc_workload("itk", model="traccc-gpu", modules=tmp_path / "modules.txt")
    assert read(tmp_path, "12,0,99999,6,0,1", of=site)["positions"].tolist() == [[12, 0, 99999, 6]]
    with pytest.raises(InputError, match=f":2: geometry_id {PIXELS} is not a module of the detector of .*modules.txt"):
        read(tmp_path, GOOD, of=site)
    request = site.recognise(site.requests("ensemble")[0], ModelTensors(inputs=RAW, outputs=WIRE))
    packed = request.pack(read(tmp_path, "12,0,3,6,0,1", of=site))
    assert read_buffer(packed["buffer"], types.SimpleNamespace(ids=np.array([77, 12]))).positions.tolist() == [
        [12, 0, 3, 6]
    ]
    assert len(read(tmp_path, GOOD, of=workload("traccc-gpu"))["positions"]) == 1, "without a list, any ID may be good"


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "has no module"), ("1\nx\n", "2: 'x' is not an integer"), ("5\n6\n5\n", "has the geometry ID 5 twice")],
)
def test_a_list_of_modules_that_is_none_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "modules.txt").write_text(text)
    site = traccc_workload("itk", model="traccc-gpu", modules=tmp_path / "modules.txt")
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, GOOD, of=site)


def test_the_metadata_of_a_model_chooses_the_contract() -> None:
    (request,) = WORKLOAD.requests("ensemble", "mine")
    current = WORKLOAD.recognise(request, ModelTensors(inputs=CURRENT, outputs=WIRE))
    assert (current.model, set(current.inputs), current.pack) == ("mine", set(CURRENT), None)
    raw = WORKLOAD.recognise(request, ModelTensors(inputs=RAW, outputs=WIRE))
    assert (raw.model, set(raw.inputs)) == ("mine", {"CELLS"})
    cells = cells_of((PIXELS, 5, 6, 0.25))
    buffer = raw.pack({"positions": cells.positions, "properties": cells.properties})["buffer"]
    assert np.array_equal(read_buffer(buffer, generic_modules()).positions, cells.positions)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (
            {"GEOMETRY_ID": "UINT64 [-1]", "FEATURES": "FP64 [-1, 5]"},
            WIRE,
            "m takes GEOMETRY_ID UINT64 [-1] with FEATURES FP64 [-1, 5], an older contract of traccc; known are "
            "CELL_POSITIONS INT64 [-1, 4] with CELL_PROPERTIES FP32 [-1, 2] (current) and CELLS UINT8 [-1] (raw",
        ),
        ({"FEATURES": "FP64 [-1, 6]"}, WIRE, "m takes FEATURES FP64 [-1, 6], an older contract"),
        ({"CELL_POSITIONS": "INT64 [-1, 4]"}, WIRE, "m takes CELL_POSITIONS INT64 [-1, 4], no contract of traccc"),
        (CURRENT, {"LABELS": "INT64 [-1]"}, "m has no output TRK_PARAMS (it has: LABELS)"),
    ],
)
def test_an_unknown_contract_is_refused_with_what_is_known(inputs: dict, outputs: dict, says: str) -> None:
    (request,) = WORKLOAD.requests("ensemble", "m")
    with pytest.raises(ModelError, match=re.escape(says)):
        WORKLOAD.recognise(request, ModelTensors(inputs=inputs, outputs=outputs))


def test_the_raw_buffer_needs_a_list_of_modules() -> None:
    site = workload("traccc-gpu")
    with pytest.raises(ModelError, match="numbers the modules of the detector, and workload traccc-gpu has no list"):
        site.recognise(site.requests("ensemble")[0], ModelTensors(inputs=RAW, outputs=WIRE))


@pytest.mark.parametrize("lengths", [(), (3,), (4, 3, 5)])
def test_the_tensors_of_the_service_become_tracks(lengths: tuple[int, ...]) -> None:
    tracks = some_tracks(*lengths)
    (request,) = WORKLOAD.requests("ensemble")
    found = request.unpack(dict(zip(OUTPUTS, pack_tracks(tracks), strict=True)))
    assert_same(found, tracks)
    assert WORKLOAD.counts(found) == {"tracks": len(lengths), "measurements": sum(lengths)}
    read_again = WORKLOAD.decode(Path("x.npz"), WORKLOAD.encode(found))
    assert_same(vars(tracks_of(read_again)), tracks)


def test_a_part_is_a_table_of_tracks(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    events = {"a": some_tracks(3, 4), "none": some_tracks(), "b": some_tracks(5), "last": some_tracks()}
    require_parts(WORKLOAD)
    path = tmp_path / part_file(WORKLOAD, "a")
    path.write_bytes(part_bytes(WORKLOAD, [(name, vars(tracks)) for name, tracks in events.items()]))
    table = pq.read_table(path)
    assert table.column("event").to_pylist() == ["a", "a", "b"]
    assert [len(one) for one in table.column("measurements").to_pylist()] == [3, 4, 5]
    assert table.column("parameters").to_pylist()[2] == events["b"].parameters[0].tolist()
    assert [len(one[0]) for one in table.column("covariances").to_pylist()] == [25, 25, 25]
    assert table.column("geometry_ids").to_pylist()[0] == events["a"].geometry_ids[:3].tolist()
    found = FoundResults(tmp_path, WORKLOAD)
    assert sorted(found.names) == sorted(events)
    for name, tracks in events.items():
        assert_same(found.read(name), tracks)


def test_a_part_without_a_track_is_one(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / part_file(WORKLOAD, "a")
    path.write_bytes(part_bytes(WORKLOAD, [("a", vars(some_tracks()))]))
    assert_same(read_part(WORKLOAD, path)["a"], some_tracks())


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / part_file(WORKLOAD, "a")
    path.write_bytes(part_bytes(WORKLOAD, [("a", vars(some_tracks(3)))]))
    table = pq.read_table(path)
    for changed, says in [
        (table.replace_schema_metadata(None), "does not list its events; do them again"),
        (table.slice(1), "has 0 rows for 1 of its events"),
        (table.drop_columns(["lengths"]), "is not a Parquet file of tracks"),
        (table.set_column(2, "lengths", pa.array(["x"])), "lengths is string, not int64"),
    ]:
        pq.write_table(changed, path)
        with pytest.raises(InputError, match=says):
            read_part(WORKLOAD, path)


class Endpoint:
    """A channel in the place of the client's own: `refusals` come before it tells the tensors of its model."""

    def __init__(self, *refusals: RequestFailed, answer: Tracks) -> None:
        self.refusals, self.answer, self.sent = list(refusals), answer, []

    async def tensors(self, model: str, *, timeout: float) -> ModelTensors:
        if self.refusals:
            raise self.refusals.pop(0)
        return ModelTensors(inputs=RAW, outputs=WIRE)

    async def infer(self, model: str, inputs: dict, outputs: object, *, timeout: float) -> Reply:
        self.sent.append(set(inputs))
        return Reply(outputs=dict(zip(OUTPUTS, pack_tracks(self.answer), strict=True)), member="m", version="1")


def delivered(endpoint: Endpoint) -> dict:
    cells = cells_of((PIXELS, 5, 6))

    async def deliver() -> dict:
        async with Client("127.0.0.1:1", workload=WORKLOAD, patience=5.0) as client:
            await client._channel.close()
            client._channel = types.SimpleNamespace(tensors=endpoint.tensors, infer=endpoint.infer, close=nothing)
            return (await client.deliver({"positions": cells.positions, "properties": cells.properties})).outputs

    async def nothing() -> None:
        return None

    return asyncio.run(deliver())


@pytest.mark.parametrize(
    ("refusal", "inputs"),
    [
        (RequestFailed("UNAVAILABLE", "Socket closed"), set(RAW)),
        (RequestFailed("PERMISSION_DENIED", "no"), set(CURRENT)),
    ],
)
def test_a_lost_question_is_asked_again_and_a_forbidden_one_is_not(refusal: RequestFailed, inputs: set[str]) -> None:
    endpoint = Endpoint(refusal, answer=some_tracks(3))
    assert_same(delivered(endpoint), some_tracks(3))
    assert endpoint.sent == [inputs]


def test_tensors_that_do_not_fit_are_the_models_fault() -> None:
    tracks = some_tracks(3, 3)
    torn = replace(tracks, covariances=tracks.covariances[1:])
    with pytest.raises(Unanswered) as caught:
        delivered(Endpoint(answer=torn))
    assert "traccc-cpu at 127.0.0.1:1 sent an invalid result: the lengths do not fit" in str(caught.value.error)
    assert (caught.value.cause, caught.value.member) == (Cause.REFUSED, "m")
