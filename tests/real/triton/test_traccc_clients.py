"""Clients send files of cells to the twin in both contracts; a service of an older contract gets nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cell_events import NOWHERE, small_event
from cell_models import TWIN, older_model, raw_model
from command import complaint, exatrkx_hpc
from triton_helper import RunningTriton, running_triton

pytest.importorskip("acts")

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.launch.payload import write_payload
from exatrkx_hpc.traccc.chain import Chain
from exatrkx_hpc.traccc.simulation.files import cells_as_csv
from exatrkx_hpc.work.inference.check_workload import check_workload
from exatrkx_hpc.work.results.read import FoundResults
from exatrkx_hpc.work.run.run import Settings, run_clients
from exatrkx_hpc.work.workloads.traccc import WORKLOAD

pytestmark = pytest.mark.usefixtures("triton")
SIZES = (1, 4, 12)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A server of the twin, its raw form and a stub of an older contract."""
    folder = tmp_path_factory.mktemp("clients")
    repository = folder / "repository"
    shutil.copytree(TWIN, repository / "traccc-cpu")
    raw_model(repository / "traccc-raw")
    older_model(repository / "traccc-old")
    write_payload(folder / "payload")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "payload"))
        with running_triton(repository, folder) as running:
            patch.undo()  # the clients need the whole package
            yield running


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    for size in SIZES:
        (folder / f"e{size}-cells.csv").write_bytes(cells_as_csv(small_event(particles=size, seed=9).cells))
    return folder


def settings(server: RunningTriton, events: Path, out: Path, model: str, **changes: object) -> Settings:
    return Settings(server=server.grpc, events=events, out=out, workload="traccc", model=model, patience=5.0, **changes)


@pytest.mark.parametrize(("model", "form"), [("traccc-cpu", "parquet"), ("traccc-raw", "csv")])
def test_each_contract_gives_the_chains_tracks(
    server: RunningTriton, events: Path, tmp_path: Path, model: str, form: str
) -> None:
    run = settings(server, events, tmp_path, model, result_format=form, part_events=2)
    report = run_clients(run)
    report.check()
    cells = {f"e{size}-cells": small_event(particles=size, seed=9).cells for size in SIZES}
    chain = Chain()
    found = FoundResults(tmp_path / "tracks", WORKLOAD)
    assert set(found.names) == set(cells)
    total = 0
    for name, of in cells.items():
        tracks = chain.find_tracks(of)
        total += len(tracks)
        for part, array in vars(tracks).items():
            assert np.array_equal(found.read(name)[part], array), (name, part)
    assert (report.item, report.items) == ("cells", sum(map(len, cells.values())))
    assert report.counts["tracks"] == total > 5
    next(path for path in (tmp_path / "tracks").iterdir() if path.name[0] != ".").unlink()
    again = run_clients(run)
    assert again.done == 3 and 1 <= again.done_now <= 2, "what is lost is done again, and nothing else"


def test_an_older_service_is_refused_before_anything_is_sent(
    server: RunningTriton, events: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"traccc-old takes GEOMETRY_ID UINT64 .*, an older contract of traccc; known"):
        run_clients(settings(server, events, tmp_path / "out", "traccc-old"))
    assert not (tmp_path / "out").exists()


def test_bad_files_go_into_quarantine_and_the_rest_is_done(server: RunningTriton, events: Path, tmp_path: Path) -> None:
    shutil.copytree(events, tmp_path / "events")
    text = (events / "e1-cells.csv").read_text().splitlines()
    (tmp_path / "events" / "e2-cells.csv").write_text("\n".join([*text, text[-1], ""]))
    (tmp_path / "events" / "e3-cells.csv").write_text("\n".join([*text, f"{NOWHERE},0,1,1,0,1", ""]))
    (tmp_path / "events" / "e1-hits.csv").write_text("x\n")
    words = ["--model", "traccc-cpu", "--server", server.grpc, "-d", "events", "-o", "out", "-n", "1", "-q", "--json"]
    done = exatrkx_hpc("run-clients", *words, cwd=tmp_path)
    assert f"e2-cells.csv:{len(text) + 1}: the cell (" in complaint(done, 9)
    report = json.loads(done.stdout)
    assert (report["done"], report["failures"], report["passed_over"]) == (3, 2, {"companion": 1})
    assert {one["kind"] for one in report["failed"]} == {"input"}
    assert f"geometry_id {NOWHERE} is not a module" in report["failed"][1]["reason"]


def test_the_sample_is_answered(server: RunningTriton) -> None:
    assert [one.fault for one in check_workload(WORKLOAD, server=server.grpc)] == [""] * 5
