"""Ensemble, stages, fused and direct: the same tracks from the same event, by four ways."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import requests
from command import PROGRAM, complaint, exatrkx_hpc
from fakes.running import fake_triton
from repositories import CONTRACT, edit
from triton_helper import RunningTriton, running_triton
from waiting import until

pytest.importorskip("torch")

from runs import read_labels

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError, InputError, ModelError
from exatrkx_hpc.base.process import kill_session, spawn
from exatrkx_hpc.config.values import Mode
from exatrkx_hpc.measure.counters import Snapshot
from exatrkx_hpc.measure.metrics import fetch, model_times
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.pipeline import load_tracker
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.ledger.open import begin, facts_of
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.coordinator import Coordinator
from exatrkx_hpc.work.run.report import read_report
from exatrkx_hpc.work.run.run import Settings, is_ready, run_clients
from exatrkx_hpc.work.run.run import _task as task_of
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD, count_tracks

SHIPPED = asset("model_repos/exatrkx")
MODES: tuple[Mode, ...] = get_args(Mode)
STAGES = ("embed", "frnn", "filter", "applyfilter", "gnn", "wcc")
Find = Callable[[np.ndarray], np.ndarray]


def partition(labels: np.ndarray) -> list[int]:
    """Rename the tracks by their first hits, so that equal partitions are equal lists."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].tolist()


def some_hits(n: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)


def changed(folder: Path, model: str = "", **parameters: str) -> Path:
    """A copy of the shipped repository in which a model has other parameters."""
    shutil.copytree(SHIPPED, folder)
    for name, value in parameters.items():
        edit(folder, model, lambda config, n=name, v=value: setattr(config.parameters[n], "string_value", v))
    return folder


# --- without a server ------------------------------------------------------------------------------------


def test_the_route_of_the_stages_is_that_of_the_ensemble() -> None:
    """Each request's tensors, followed by name, are those that the ensemble's steps pass on."""
    steps = read_config(SHIPPED / "exatrkx" / CONFIG).ensemble_scheduling.step
    ours, theirs = WORKLOAD.requests("stages"), list(steps)
    assert [request.model for request in ours] == [step.model_name for step in theirs] == list(STAGES)
    names = {"hits": "FEATURES"}  # ours -> the ensemble's
    for request, step in zip(ours, theirs, strict=True):
        assert {key: names[source] for key, source in request.inputs.items()} == dict(step.input_map)
        for output, result in request.outputs.items():
            names[result] = step.output_map[output]
    assert names["labels"] == "LABELS"


def test_every_route_asks_for_tensors_that_its_models_have() -> None:
    for request in (one for mode in ("ensemble", "stages", "fused") for one in WORKLOAD.requests(mode)):
        tensors = {tensor.split()[0] for tensor in CONTRACT[request.model]}
        assert {*request.inputs, *request.outputs} <= tensors


def test_what_a_mode_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mode direct needs no endpoint; .*run-clients --mode direct"):
        Endpoint("127.0.0.1:1", mode="direct")
    with pytest.raises(ConfigError, match="mode is 'quick'; workload exatrkx has ensemble, stages, fused or direct"):
        WORKLOAD.requests("quick")
    with pytest.raises(ConfigError, match="mode direct needs a model repository"):
        Settings(events=tmp_path, out=tmp_path / "out", mode="direct")
    assert WORKLOAD.models("stages") == ", ".join(STAGES)


def test_direct_waits_for_no_network(tmp_path: Path) -> None:
    """The limits of a request, and of its retries, do not end a worker that loads its models or computes."""
    events = tmp_path / "events"
    events.mkdir()
    np.savetxt(events / "evt_0.csv", some_hits(30), delimiter=",")
    limits = {"request_timeout": 0.01, "patience": 0.0}
    settings = Settings(events=events, out=tmp_path / "out", mode="direct", repository=SHIPPED, **limits)
    facts = facts_of(events, workload=settings.kind, mode="direct", model=settings.models)
    settings.folder.mkdir(parents=True)
    with begin(settings.results, events, facts) as ledger:
        accounts = Accounts(ledger, settings.results, events, server=str(SHIPPED), version="")
        task = task_of(settings, newline=False)
        run = Coordinator(
            task, accounts, workers=1, show=lambda tally: None, spare=0.0, is_ready=lambda: is_ready(settings)
        )
        asyncio.run(run.run())
        assert run.report().done == 1 and ledger.facts["mode"] == "direct"
        (attempts,) = ledger.db.execute("SELECT attempts FROM events").fetchone()
        assert attempts == 1, "no worker was taken for one that hangs"


@pytest.mark.slow
def test_direct_needs_no_server_and_reports_the_same_way(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    for size in (0, 1, 2, 300):
        np.savetxt(events / f"evt_{size}.csv", some_hits(size), delimiter=",", footer="" if size else "\n", comments="")
    (events / "evt_9.csv").write_text("0.1,0.2,0.3\n32.0,0.2,0.3\n")
    settings = Settings(events=events, out=tmp_path / "out", workers=2, mode="direct", repository=SHIPPED)
    report = run_clients(settings)
    assert (report.done, report.mode, report.server) == (4, "direct", str(SHIPPED))
    (failed,) = report.failed
    assert (failed.event, failed.kind) == ("evt_9", "model")
    assert "FEATURES has r / 3000 mm = 32 in row 1, which is out of range; expected 0 to 10" in failed.reason
    assert read_report(settings.report) == report
    find = load_tracker(SHIPPED)
    for size in (0, 1, 2, 300):
        labels = read_labels(settings.folder / f"evt_{size}.csv")
        assert labels.tolist() == find(read_hits(events / f"evt_{size}.csv")).tolist()


@pytest.mark.slow
def test_direct_has_the_constants_of_the_repository(tmp_path: Path) -> None:
    hits = some_hits(300)
    strict = load_tracker(changed(tmp_path / "strict", "wcc", cut="1.0"))
    assert len(set(load_tracker(SHIPPED)(hits))) < len(set(strict(hits))) == 300
    with pytest.raises(ModelError, match="invalid constant"):
        load_tracker(changed(tmp_path / "wrong", "frnn", radius="wide"))


def test_direct_says_what_is_wrong_with_a_repository(tmp_path: Path) -> None:
    def says(repository: Path) -> str:
        with pytest.raises(ModelError) as error:
            load_tracker(repository)
        return str(error.value)

    assert f"model repository {tmp_path / 'none'} does not exist" in says(tmp_path / "none")
    copy = changed(tmp_path / "copy")
    shutil.copy(copy / "embed/1/model.pt", copy / "gnn/1/model.pt")
    wrong = says(copy)
    assert "gnn: the network does not take INPUT__0 float32 [N, 3] and INPUT__1 int64 [2, E]" in wrong
    assert "\n" not in wrong
    (copy / "gnn/1/model.pt").unlink()
    assert f"gnn: the weight {copy / 'gnn/1/model.pt'} is missing" in says(copy)


def test_a_broken_weight_fails_each_direct_event_with_its_reason(tmp_path: Path) -> None:
    copy = changed(tmp_path / "copy")
    (copy / "embed/1/model.pt").write_bytes(b"no weights")
    (tmp_path / "events").mkdir()
    (tmp_path / "events/evt_0.csv").write_text("0.1,0.2,0.3\n")
    done = exatrkx_hpc("run-clients", "--mode", "direct", "--model-repository", "copy", "-n", 1, "-q", cwd=tmp_path)
    assert "0 of 1 events have results" in complaint(done, 9)
    assert "embed/1/model.pt" in done.stderr


def test_the_command_line_has_every_mode(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events/evt_0.csv").write_text("0.1,0.2,0.3\n")
    (tmp_path / "farm.toml").write_text('[clients]\nmode = "fused"\n')
    with fake_triton("--model", "exatrkx_fused") as fake:
        done = exatrkx_hpc("run-clients", "-s", fake.server, "-n", 1, "--json", cwd=tmp_path)
        report = json.loads(done.stdout)
        assert (report["mode"], report["model"], report["done"]) == ("fused", "exatrkx_fused", 1)
        stages = exatrkx_hpc("run-clients", "-s", fake.server, "--mode", "stages", "-o", "stages", cwd=tmp_path)
        assert "embed is not ready" in complaint(stages, 7)
        both = exatrkx_hpc("run-clients", "-s", fake.server, "--mode", "direct", cwd=tmp_path)
        assert "--server and mode direct are mutually exclusive" in complaint(both, 2)


# --- the real server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SHIPPED, tmp_path_factory.mktemp("modes") / "repository", device="cpu", instances=1).path


@pytest.fixture(scope="module")
def running(repository: Path, tmp_path_factory: pytest.TempPathFactory, triton: None) -> Iterator[RunningTriton]:
    options = ("--model-control-mode=explicit", "--load-model=*")
    with running_triton(repository, tmp_path_factory.mktemp("triton"), options=options) as server:
        yield server


@pytest.fixture(scope="module")
def server(running: RunningTriton) -> str:
    return running.grpc


@pytest.fixture(scope="module")
def ways(server: str) -> Iterator[dict[Mode, Find]]:
    """What finds tracks, for each mode."""
    ends = {mode: Endpoint(server, mode=mode) for mode in MODES if mode != "direct"}
    yield {mode: end.find_tracks for mode, end in ends.items()} | {"direct": load_tracker(SHIPPED)}
    for end in ends.values():
        end.close()


@pytest.mark.triton
def test_all_modes_find_the_same_tracks_in_any_order_of_the_hits(ways: dict, reference_data: Path) -> None:
    files = sorted((reference_data / "exatrkx" / "events_scaled").glob("*.csv"))
    assert len(files) == 16
    for path in files:
        hits = read_hits(path)
        order = np.random.default_rng(len(hits)).permutation(len(hits))
        found = {mode: partition(find(hits)) for mode, find in ways.items()}
        assert all(tracks == found["direct"] for tracks in found.values()), path.name
        assert 1 < len(set(found["direct"])) < len(hits)
        for mode, find in ways.items():
            back = np.empty_like(order)
            back[order] = find(hits[order])
            assert partition(back) == found["direct"], (path.name, mode)


@pytest.mark.triton
@pytest.mark.parametrize("n_hits", [0, 1, 2])
def test_all_modes_label_the_smallest_events(ways: dict, n_hits: int) -> None:
    labels = {mode: find(some_hits(n_hits)) for mode, find in ways.items()}
    assert {(array.shape, array.dtype.name) for array in labels.values()} == {((n_hits,), "int64")}
    assert len({tuple(partition(array)) for array in labels.values()}) == 1


@pytest.mark.triton
@pytest.mark.parametrize("mode", ["stages", "fused"])
def test_a_run_in_another_mode_asks_the_models_of_that_mode(server: str, tmp_path: Path, mode: Mode) -> None:
    (tmp_path / "events").mkdir()
    for size in (0, 3, 40):
        np.savetxt(
            tmp_path / f"events/evt_{size}.csv",
            some_hits(size),
            delimiter=",",
            footer="" if size else "\n",
            comments="",
        )
    metrics = server.replace(":8001", ":8002")
    before = settled(metrics)
    report = run_clients(Settings(server=server, events=tmp_path / "events", out=tmp_path / "out", mode=mode))
    report.check()
    expected = dict.fromkeys(WORKLOAD.models(mode).split(", "), 3)

    def asked() -> dict[str, int]:
        return {one.model: one.successes for one in model_times(fetch(metrics), before) if one.successes}

    until(lambda: asked() == expected, what=f"requests {expected}")  # Triton counts a request after its answer
    assert len(read_labels(tmp_path / "out/labels/evt_40.csv")) == 40


def settled(metrics: str) -> Snapshot:
    """What a server counted once it counts no more: Triton counts a request after its answer, an earlier test's too."""

    def still() -> Snapshot | None:
        first = fetch(metrics)
        time.sleep(0.3)
        return first if not [one for one in model_times(fetch(metrics), first) if one.successes] else None

    return until(still, what="a server that counts nothing")


def times_of(out: Path) -> dict[str, list[float]]:
    """The rows of OUT/times.csv, each event once and in natural order."""
    with (out / "times.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["event", "embedding", "building", "filtering", "gnn", "labeling", "total"]
    names = [name for name, *_ in rows]
    assert names == sorted(set(names), key=lambda name: int(name.removeprefix("evt_")))
    return {name: [float(value) for value in values] for name, *values in rows}


@pytest.mark.triton
def test_the_times_of_the_stages_are_there_once_for_each_done_event(server: str, tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    for size in (2, 10, 40):
        np.savetxt(events / f"evt_{size}.csv", some_hits(size), delimiter=",", footer="" if size else "\n", comments="")
    words = ["run-clients", "-s", server, "--mode", "stages", "-d", "events", "-o", "out"]
    done = exatrkx_hpc(*words, "--times", "-i", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the first 1 events" in done.stdout and "stages mean" in done.stdout
    first = times_of(tmp_path / "out")
    assert list(first) == ["evt_2", "evt_10", "evt_40"]
    assert all(min(times) > 0 and sum(times[:-1]) <= times[-1] for times in first.values())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["ignored_first"] == 1 and list(report["stages_ms"])[:2] == ["embedding", "building"]
    assert report["counts"]["tracks"] == sum(
        count_tracks(read_labels(path)) for path in (tmp_path / "out/labels").iterdir()
    )
    # The next run does what is new or lost, and keeps the file, also without being asked for it.
    np.savetxt(events / "evt_7.csv", some_hits(7), delimiter=",")
    (events / "evt_8.csv").write_text("not,hits,here\n")
    (tmp_path / "out/labels/evt_10.csv").unlink()
    assert exatrkx_hpc(*words, cwd=tmp_path).returncode == 9  # evt_8
    again = times_of(tmp_path / "out")
    assert list(again) == ["evt_2", "evt_7", "evt_10", "evt_40"]
    assert again["evt_2"] == first["evt_2"] and again["evt_10"] != first["evt_10"]
    # The ledger has them all.
    (tmp_path / "out/times.csv").unlink()
    assert exatrkx_hpc("report", "out", "--times", cwd=tmp_path).returncode == 0
    assert times_of(tmp_path / "out") == again


@pytest.mark.triton
def test_a_run_that_is_killed_has_the_times_of_each_event_once_in_the_end(server: str, tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for number in range(40):
        np.savetxt(tmp_path / f"events/evt_{number}.csv", some_hits(100), delimiter=",")
    words = ["run-clients", "-s", server, "--mode", "stages", "--times", "-j", "1", "-d", "events", "-o", "out"]
    child = spawn([PROGRAM, *words], log=tmp_path / "log", cwd=tmp_path)
    labels = tmp_path / "out/labels"
    until(lambda: len(list(labels.glob("*.csv"))) >= 5, what="some labels")
    kill_session(child.pid)
    child.wait(10)
    assert not (tmp_path / "out/times.csv").exists()
    assert exatrkx_hpc(*words, cwd=tmp_path).returncode == 0
    times = times_of(tmp_path / "out")
    assert list(times) == [f"evt_{number}" for number in range(40)]
    assert all(len(row) == 6 for row in times.values())


def test_only_the_stages_have_times(tmp_path: Path) -> None:
    for mode in ("ensemble", "fused", "direct"):
        words = [] if mode == "direct" else ["-s", "127.0.0.1:9"]
        done = exatrkx_hpc("run-clients", "--mode", mode, "--times", *words, cwd=tmp_path)
        assert f"--times needs --mode stages; mode {mode} does not measure the stages" in complaint(done, 2)
    negative = exatrkx_hpc("run-clients", "-s", "127.0.0.1:9", "-i", -1, cwd=tmp_path)
    assert "-i must be at least 0, not -1" in complaint(negative, 2)
    wide = exatrkx_hpc("run-clients", "-s", "127.0.0.1:9", "-i", 1, "--srun", cwd=tmp_path)
    assert "-i works only for a run on one machine" in complaint(wide, 2)


OUT_OF_RANGE = {
    "ensemble": "embed: INPUT__0 has",
    "stages": "embed: INPUT__0 has",
    "fused": "exatrkx_fused: FEATURES has",
    "direct": "direct: FEATURES has",
}


@pytest.mark.filterwarnings("ignore:phi reaches")  # the events look like radians, too
@pytest.mark.triton
@pytest.mark.parametrize("mode", MODES)
def test_the_clients_message_names_model_tensor_and_what_was_expected(ways: dict, mode: Mode) -> None:
    hits = some_hits(4)
    hits[2, 1] = 3.1  # phi in radians
    with pytest.raises(ModelError) as error:
        ways[mode](hits)
    expected = "phi / pi = 3.1 in row 2, which is out of range; expected -1.001 to 1.001"
    assert f"{OUT_OF_RANGE[mode]} {expected}" in str(error.value)
    hits[2, 1] = np.nan
    with pytest.raises(
        (InputError, ModelError), match=r"row 2 of hits is not finite|has a NaN or an infinity in row 2"
    ):
        ways[mode](hits)
    assert ways[mode](some_hits(4)).shape == (4,)


def load(running: RunningTriton, model: str) -> str:
    """Let the server load a model anew, and return what it said against it."""
    for verb in ("unload", "load"):
        answer = requests.post(f"{running.http}/v2/repository/models/{model}/{verb}", timeout=60)
    return answer.text


@pytest.mark.triton
@pytest.mark.parametrize(
    ("model", "mode", "wrong", "says"),
    [
        ("gnn", "stages", None, "gnn: the weight {path} is missing"),
        ("exatrkx_fused", "fused", "embed", "exatrkx_fused: gnn: the network does not take INPUT__0 float32 [N, 3]"),
    ],
)
def test_a_client_says_why_a_model_did_not_load_and_the_others_are_served(
    running: RunningTriton, repository: Path, model: str, mode: Mode, wrong: str | None, says: str
) -> None:
    path = repository / "gnn/1/model.pt"
    good = path.read_bytes()
    try:
        path.unlink()
        if wrong:
            path.write_bytes((repository / wrong / "1/model.pt").read_bytes())
        assert load(running, model)
        with Endpoint(running.grpc, mode=mode) as endpoint, pytest.raises(ModelError) as error:
            endpoint.check()
        assert str(error.value).startswith(f"{model} is not ready at {running.grpc} (")
        assert says.format(path=path) in str(error.value)
        assert "\n" not in str(error.value)
        other: Mode = "fused" if model == "gnn" else "ensemble"
        with Endpoint(running.grpc, mode=other) as endpoint:
            assert endpoint.find_tracks(some_hits(5)).shape == (5,)
    finally:
        path.write_bytes(good)
        assert not load(running, model)
        load(running, "exatrkx")
    with Endpoint(running.grpc, mode=mode) as endpoint:
        assert endpoint.find_tracks(some_hits(5)).shape == (5,)
