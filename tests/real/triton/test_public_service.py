"""The programs of the public service, as stand-ins written from their contract, against this project's servers."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import exatrkx_hpc
from paths import FAKES
from runs import read_labels
from triton_helper import RunningTriton, running_triton
from waiting import until

from exatrkx_hpc.base.process import Child, Completed, run, spawn
from exatrkx_hpc.work.events.convert import json_to_events
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events

PROGRAMS = FAKES / "public_service"
EVENTS = 4


def original(program: str, *words: object, cwd: Path) -> Completed:
    return run([sys.executable, str(PROGRAMS / program), *map(str, words)], cwd=cwd, timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository of seven models and some events."""
    folder = tmp_path_factory.mktemp("public")
    for words in (
        ("models", "build", "--device", "cpu", "--no-fused", "--out", "models"),
        ("events", "generate", "--out", "events", "--events", EVENTS, "--tracks", 20),
    ):
        done = exatrkx_hpc(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(place: Path, triton: None) -> Iterator[RunningTriton]:
    with running_triton(place / "models", place) as up:
        yield up


def copy_events(place: Path, folder: Path) -> None:
    """Copy the events alone: the original reads every file of its folder."""
    folder.mkdir()
    for event in find_events(place / "events"):
        (folder / event.path.name).write_bytes(event.path.read_bytes())


@contextlib.contextmanager
def script(server: RunningTriton, folder: Path, *, seconds: int) -> Iterator[Child]:
    """The metrics script while it polls."""
    words = ["--ip", server.grpc.replace(":8001", ":8002"), "--timeout", str(seconds), "--freq", "0.01"]
    argv = [sys.executable, str(PROGRAMS / "metrics.py"), *words]
    log = folder / "script.log"
    child = spawn(argv, log=log, cwd=folder)
    try:
        until(lambda: "<pulling data>" in log.read_text(), what="the script's first poll")
        yield child
    finally:
        child.stop(grace=1.0)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_original_client_finds_the_tracks_of_run_clients(
    server: RunningTriton, place: Path, tmp_path: Path, threads: int
) -> None:
    copy_events(place, tmp_path / "events")
    done = original("client.py", "-u", server.grpc, "-d", "events", "-t", threads, cwd=tmp_path)
    ours = exatrkx_hpc("run-clients", "-s", server.grpc, "-d", "events", "-o", "out", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    labels = [set(read_labels(path).tolist()) for path in (tmp_path / "out/labels").glob("*.csv")]
    assert len(labels) == EVENTS
    assert done.stdout == f"Total {sum(map(len, labels))} tracks in {EVENTS} events.\n", done.stderr


def test_the_original_metrics_script_reads_seven_models(server: RunningTriton, place: Path, tmp_path: Path) -> None:
    copy_events(place, tmp_path / "events")
    with script(server, tmp_path, seconds=8) as child:
        time.sleep(1.0)
        assert original("client.py", "-u", server.grpc, "-d", "events", cwd=tmp_path).returncode == 0
        assert child.wait(60) == 0, (tmp_path / "script.log").read_text()
    assert f"- exatrkx - {EVENTS}" in (tmp_path / "script.log").read_text()
    for name in ("metrics_request_time.csv", "metrics_execution_time.csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["embed", "frnn", "filter", "gnn", "wcc", "exatrkx", "num_evts"]
        assert 1 <= sum(int(row["num_evts"]) for row in rows) <= EVENTS


def test_the_original_json_and_ours_hold_the_same_events(place: Path, tmp_path: Path) -> None:
    copy_events(place, tmp_path / "lrt")
    assert original("convert.py", "--input", "lrt", cwd=tmp_path).returncode == 0
    assert exatrkx_hpc("events", "convert", "lrt", "ours.json", cwd=tmp_path).returncode == 0
    for name in ("lrt.json", "ours.json"):
        shapes = [entry["FEATURES"]["shape"] for entry in json.loads((tmp_path / name).read_text())["data"]]
        assert shapes == [list(read_hits(event.path).shape) for event in find_events(place / "events")]
        back = tmp_path / name.removesuffix(".json") / "back"
        assert json_to_events(tmp_path / name, back, tensor="FEATURES") == EVENTS
        for event, again in zip(find_events(place / "events"), find_events(back), strict=True):
            assert read_hits(event.path).tobytes() == read_hits(again.path).tobytes()
