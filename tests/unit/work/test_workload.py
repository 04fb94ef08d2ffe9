"""The seam of the workload, by a second one: two inputs, four outputs, and no line of code elsewhere."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from triton_helper import RunningTriton, running_triton

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError, InputError, ModelError
from exatrkx_hpc.work.events.source import Reader, find_events
from exatrkx_hpc.work.inference.check_workload import check_workload
from exatrkx_hpc.work.ledger.file import connect
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.results.parts import require_parts
from exatrkx_hpc.work.results.read import FoundResults
from exatrkx_hpc.work.run.run import Settings, run_clients
from exatrkx_hpc.work.workloads import echo
from exatrkx_hpc.work.workloads.base import Request, check_outputs
from exatrkx_hpc.work.workloads.echo import WORKLOAD
from exatrkx_hpc.work.workloads.given import as_tensors
from exatrkx_hpc.work.workloads.table import names, workload, workload_of

SIZES = (0, 1, 2, 7, 30)


def event(size: int) -> dict[str, np.ndarray]:
    points = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
    return {"points": points, "ids": 2**53 + 1 + np.arange(size, dtype=np.int64)}


def expected(size: int) -> dict[str, np.ndarray]:
    inputs = event(size)
    ids = inputs["ids"]
    return {
        "copies": inputs["points"],
        "sums": inputs["points"].sum(axis=1, dtype=np.float32),
        "links": np.stack([ids[:-1], ids[1:]], axis=1),
        "size": np.array([size]),
    }


def assert_same(found, size: int) -> None:
    wanted = expected(size)
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


def write(folder: Path, form: str, sizes=SIZES) -> Path:
    folder.mkdir(parents=True)
    for size in sizes:
        inputs = event(size)
        if form == "npz":
            np.savez(folder / f"evt_{size}.npz", **inputs)
        elif form == "csv":
            rows = [f"{one},{x:.9g},{y:.9g}\n" for (x, y), one in zip(inputs["points"], inputs["ids"], strict=True)]
            (folder / f"evt_{size}.csv").write_text("id,x,y\n" + "".join(rows))
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        inputs = {size: event(size) for size in sizes if size}
        columns = {
            "event": [f"evt_{size}" for size in inputs for _ in range(size)],
            "x": np.concatenate([one["points"][:, 0] for one in inputs.values()]),
            "y": np.concatenate([one["points"][:, 1] for one in inputs.values()]),
            "id": np.concatenate([one["ids"] for one in inputs.values()]),
        }
        pq.write_table(pa.table(columns), folder / "events.parquet")
    return folder


@pytest.fixture(scope="module")
def server(triton: None, tmp_path_factory: pytest.TempPathFactory):
    """A real Triton with the shipped echo model."""
    folder = tmp_path_factory.mktemp("echo")
    shutil.copytree(asset("model_repos/echo"), folder / "repository")
    with running_triton(folder / "repository", folder) as running:
        yield running


def settings(server: RunningTriton, folder: Path, **changes) -> Settings:
    values = {"server": server.grpc, "events": folder / "events", "out": folder / "out", "workload": "echo"}
    return Settings(**(values | {"workers": 2, "patience": 5.0} | changes))


@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
def test_events_of_every_format_have_the_same_tensors(tmp_path: Path, form: str) -> None:
    events = find_events(write(tmp_path / "events", form), workload=WORKLOAD)
    reader = Reader(WORKLOAD)
    assert [one.name for one in events] == [f"evt_{size}" for size in SIZES if size or form != "parquet"]
    for one in events:
        size = int(one.name[4:])
        tensors = reader.read(one).tensors
        for name, array in event(size).items():
            assert tensors[name].dtype == array.dtype and np.array_equal(tensors[name], array)
    reader.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,y\n1,2\n", r":1: has no column id \(it has: x,y\); expected the header x,y,id"),
        ("x,y,id\n1,2\n", ":2: 2 columns, not 3"),
        ("x,y,id\n1,2,3\n1,2,3.5\n", ":3: '3.5' is not an integer; the column id is int64"),
        ("x,y,id\n1,a,3\n", ":2: 'a' is not a number; the column y is float32"),
        ("x,y,id\n1,nan,3\n", "row 0 of points is not finite"),
        (f"x,y,id\n1,2,{2**63}\n", "which does not fit into int64"),
        ("", " is empty, 0 bytes; write it again"),
    ],
)
def test_a_table_that_is_no_event_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "evt.csv").write_text(text)
    with pytest.raises(InputError, match=f"evt.csv.*{says}") as caught:
        Reader(WORKLOAD).read(*find_events(tmp_path, workload=WORKLOAD))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((3, 2)), "a mapping with the arrays points, ids"),
        ({"points": np.zeros((3, 2))}, "needs ids, too"),
        ({"points": np.zeros((3, 2)), "ids": [1, 2]}, "points has 3 points but ids has 2"),
        ({"points": np.zeros((3, 3)), "ids": [1, 2, 3]}, r"points have the shape \[3, 3\], not \[N,2\]"),
        ({"points": np.zeros((1, 2)), "ids": [1.5]}, "ids are not integers"),
        ({"points": np.zeros((1, 2)), "ids": [2.0**60]}, "not exact from 2.53 on"),
        ({"points": np.zeros((1, 2)), "ids": np.array([2**63], np.uint64)}, "does not fit into int64"),
        ({"points": np.zeros((1, 2)), "ids": [1], "more": [1]}, "has no input 'more'"),
    ],
)
def test_what_is_no_event_is_refused(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        as_tensors(WORKLOAD, given)


def test_outputs_that_do_not_fit_are_the_models_fault() -> None:
    inputs, good = event(3), expected(3)
    check_outputs(WORKLOAD, inputs, good, who="m")
    for name, bad, says in (
        ("sums", np.zeros(2, np.float32), r"m sent sums float32 \[2\], not float32 \[3\], for 3 points"),
        ("sums", np.zeros(3), r"m sent sums float64 \[3\], not float32 \[3\]"),
        ("links", np.zeros((3, 2), np.int64), "3 links for 3 points, not 2"),
        ("size", np.zeros((1, 1), np.int64), r"size int64 \[1, 1\], not int64 \[1\]"),
    ):
        with pytest.raises(ModelError, match=says):
            check_outputs(WORKLOAD, inputs, {**good, name: bad}, who="m")


@pytest.mark.triton
@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("results", ["csv", "parquet"])
def test_each_event_has_one_result_once_only_and_resumed(
    server: RunningTriton, tmp_path: Path, form: str, results: str
) -> None:
    write(tmp_path / "events", form)
    run = settings(server, tmp_path, result_format=results, part_events=2)
    first = run_clients(run)
    first.check()
    done = len(SIZES) - (form == "parquet")
    assert (first.done, first.item, first.items) == (done, "points", sum(SIZES))
    assert first.counts == {"links": sum(max(size - 1, 0) for size in SIZES)}
    found = FoundResults(run.folder, WORKLOAD)
    assert len(found.names) == done
    for name in found.names:
        assert_same(found.read(name), int(name[4:]))
    next(run.folder.iterdir()).unlink()  # what is lost is done again, and nothing else
    again = run_clients(run)
    assert again.done == done and 1 <= again.done_now <= 2


@pytest.mark.triton
def test_a_bad_event_is_put_into_quarantine_and_the_page_counts_points(server: RunningTriton, tmp_path: Path) -> None:
    write(tmp_path / "events", "npz")
    np.savez(tmp_path / "events" / "evt_99.npz", points=np.zeros((2, 2)))
    out = tmp_path / "out"
    words = ["run-clients", "--model", "echo", "--server", server.grpc, "-d", str(tmp_path / "events"), "-o", str(out)]
    done = exatrkx_hpc(*words, "-n", "2", "--json", cwd=tmp_path)
    assert "evt_99.npz has no array ids" in complaint(done, 9)
    report = json.loads(done.stdout)
    assert (report["done"], report["failures"], report["item"], report["items"]) == (5, 1, "points", sum(SIZES))
    assert [path.name for path in (out / "quarantine").iterdir()] == ["evt_99.json"]
    assert not (out / "labels").exists(), "a folder of another workload's results"
    page = (out / "report.html").read_text()
    assert ">points<" in page and ">hits<" not in page


@pytest.mark.triton
def test_a_run_in_shards_and_a_map_with_a_ledger_know_it_too(server: RunningTriton, tmp_path: Path) -> None:
    from exatrkx_hpc.work.nodes.run import here, run_sharded

    write(tmp_path / "events", "npz")
    run = settings(server, tmp_path)
    report = run_sharded(run, here(lambda line: None), shards=2)
    assert (report.done, report.item, report.items) == (len(SIZES), "points", sum(SIZES))
    with Endpoint(server.grpc, workload=WORKLOAD) as endpoint:
        assert_same(endpoint.infer(event(4)), 4)
        for _ in range(2):
            found = list(endpoint.map({f"e{size}": event(size) for size in SIZES}, ledger=tmp_path / "map"))
            for one in found:
                assert_same(one.result, int(one.name[1:]))
        assert all(one.before for one in found)


def test_a_workload_of_ones_own_comes_from_a_folder(tmp_path: Path) -> None:
    text = (
        Path(str(echo.__file__)).read_text().replace('name="echo"', 'name="mine"').replace('model="echo"', 'model="m"')
    )
    (tmp_path / "mine.py").write_text(text)
    assert names(str(tmp_path)) == ("echo", "exatrkx", "mine", "traccc", "traccc-gpu")
    assert workload("mine", str(tmp_path)).model == "m"
    assert workload_of("m", folder=str(tmp_path)).name == "mine" and workload_of("echo").name == "echo"
    assert workload_of("").name == workload_of("an_ensemble_of_a_site").name == "exatrkx"
    listed = exatrkx_hpc("workload", "list", "--workloads", str(tmp_path), "--json", cwd=tmp_path)
    assert [one["name"] for one in json.loads(listed.stdout)] == ["echo", "exatrkx", "mine", "traccc", "traccc-gpu"]
    checked = exatrkx_hpc("workload", "check", "mine", "--workloads", str(tmp_path), cwd=tmp_path)
    assert checked.returncode == 0 and checked.stdout.count("ok ") == 4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mine", "1 / 0", "mine.py cannot be loaded: ZeroDivisionError: division by zero"),
        ("mine", "WORKLOAD = 3", "has no WORKLOAD that is a Workload"),
        ("other", "", "unknown workload 'other'; known: echo, exatrkx, mine, traccc, traccc-gpu"),
        ("exatrk", "", "did you mean 'exatrkx'"),
    ],
)
def test_a_workload_that_is_none_is_one_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=says):
        workload(name, str(tmp_path))
    with pytest.raises(ConfigError, match="does not exist"):
        workload(name, str(tmp_path / "nowhere"))


def test_inputs_without_columns_do_not_come_from_parquet(tmp_path: Path) -> None:
    events = write(tmp_path / "events", "parquet")
    ids = dataclasses.replace(WORKLOAD.inputs[1], columns=())
    bare = dataclasses.replace(WORKLOAD, inputs=(WORKLOAD.inputs[0], ids))
    with pytest.raises(InputError, match="workload echo does not name the columns of ids; give it columns, or give"):
        find_events(events, workload=bare)


@pytest.mark.parametrize(
    "output",
    [
        {"name": "grid", "dtype": "float32", "shape": ("points", "links")},
        {"name": "flags", "dtype": "bool", "shape": ("points",)},
        {"name": "event", "dtype": "int64", "shape": ("points",)},
    ],
)
def test_results_that_parquet_cannot_keep_are_refused_before_the_run(output: dict) -> None:
    more = dataclasses.replace(WORKLOAD.outputs[0], **output)
    whole = dataclasses.replace(WORKLOAD, outputs=(*WORKLOAD.outputs, more))
    with pytest.raises(ConfigError, match=f"{output['name']} .* of workload echo cannot be stored in Parquet"):
        require_parts(whole)
    require_parts(WORKLOAD)


def test_one_number_is_no_list_of_one() -> None:
    with pytest.raises(InputError, match=r"ids have the shape \[\], not \[N\]"):
        as_tensors(WORKLOAD, {"points": [[1.0, 2.0]], "ids": 7})


def test_check_finds_what_does_not_hold() -> None:
    def faults(**changes) -> str:
        return "; ".join(one.fault for one in check_workload(dataclasses.replace(WORKLOAD, **changes)) if one.fault)

    assert faults() == ""
    request = WORKLOAD.modes["ensemble"][0]
    lost = Request(model="echo", inputs={"POINTS": "dots"}, outputs={"COPIES": "copies"})
    assert "needs POINTS from 'dots', which nothing provides" in faults(modes={"ensemble": (lost,)})
    assert "mode ensemble returns no sums" in faults(modes={"ensemble": (lost,)})
    assert "the workload has no mode" in faults(modes={})
    assert "no input has the axis cells" in faults(item="cells")
    assert "two tensors are named" in faults(outputs=(*WORKLOAD.outputs, WORKLOAD.inputs[0]))
    odd = dataclasses.replace(WORKLOAD.outputs[1], dtype="complex64")
    assert "sums is complex64, which Triton does not support" in faults(outputs=(odd,), modes={"ensemble": (request,)})
    assert "the workload has no sample" in faults(sample=None)
    assert "points has 5 points but ids has 4" in faults(
        sample=lambda random: {"points": np.zeros((5, 2)), "ids": np.arange(4)}
    )
    assert "differs from what was written" in faults(decode=lambda path, data: {})
    assert "the count links is float" in faults(counts=lambda outputs: {"links": 1.5})


@pytest.mark.triton
def test_check_asks_the_service(server: RunningTriton) -> None:
    assert [one.fault for one in check_workload(WORKLOAD, server=server.grpc)] == [""] * 5
    outputs = tuple(
        dataclasses.replace(spec, shape=("points",)) if spec.name == "size" else spec for spec in WORKLOAD.outputs
    )
    last = check_workload(dataclasses.replace(WORKLOAD, outputs=outputs), server=server.grpc)[-1]
    assert "sent size int64 [1], not int64 [5], for 5 points" in last.fault


def test_a_ledger_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(
            """
            CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
            INSERT INTO facts VALUES ('labels', 'csv'), ('mode', 'ensemble');
            CREATE TABLE events (key BLOB PRIMARY KEY, name TEXT, hits, labels_size, labels_sha256 BLOB);
            INSERT INTO events VALUES (x'00', 'evt_0', 3, 6, x'cd');
            PRAGMA application_id = 0x65787472; PRAGMA user_version = 2;
            """
        )
    db.close()
    for _ in range(2):
        db = connect(path)
        assert db.execute("SELECT items, result_size, hex(result_sha256) FROM events").fetchall() == [(3, 6, "CD")]
        facts = dict(db.execute("SELECT name, value FROM facts"))
        assert facts == {"results": "csv", "mode": "ensemble", "workload": "exatrkx", "item": "hits"}
        db.close()
