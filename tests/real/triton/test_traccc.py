"""traccc's twin as Triton serves it, in both contracts: tracks, empty events, bad cells, several instances."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cell_events import NOWHERE, PIXELS, cells_of, chosen, small_event
from cell_models import TWIN as SHIPPED
from cell_models import raw_model
from triton_helper import DidNotStart, RunningTriton, running_triton
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytest.importorskip("acts")

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.launch.payload import write_payload
from exatrkx_hpc.models.repository import CONFIG, read_config, write_config
from exatrkx_hpc.traccc.cells import Cells
from exatrkx_hpc.traccc.chain import Chain
from exatrkx_hpc.traccc.scoring.score import score_tracks
from exatrkx_hpc.traccc.tensors import OUTPUTS, unpack_tracks, write_buffer
from exatrkx_hpc.traccc.tracks import Tracks

pytestmark = pytest.mark.usefixtures("triton")
FIELDS = ("parameters", "lengths", "measurements", "covariances", "geometry_ids")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A server of the twin and of its raw form, with only the code that travels to the nodes on its path."""
    work_dir = tmp_path_factory.mktemp("traccc")
    repository = work_dir / "repository"
    shutil.copytree(SHIPPED, repository / "traccc-cpu")
    config = read_config(repository / "traccc-cpu" / CONFIG)
    config.instance_group[0].count = 2
    write_config(repository / "traccc-cpu" / CONFIG, config)
    raw_model(repository / "traccc-raw")
    write_payload(work_dir / "payload")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(work_dir / "payload"))
        with running_triton(repository, work_dir) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: RunningTriton) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc) as made:
        yield made


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def infer(client: InferenceServerClient, model: str = "traccc-cpu", **tensors: np.ndarray) -> dict[str, np.ndarray]:
    inputs = []
    for name, array in tensors.items():
        entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    answer = client.infer(model, inputs, client_timeout=60)
    return {name: answer.as_numpy(name) for name in OUTPUTS}


def ask(client: InferenceServerClient, cells: Cells) -> dict[str, np.ndarray]:
    return infer(client, CELL_POSITIONS=cells.positions, CELL_PROPERTIES=cells.properties)


def assert_same(one: Tracks, other: Tracks) -> None:
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def test_the_served_tensors_are_those_of_the_public_service(client):
    facts = client.get_model_metadata("traccc-cpu", as_json=True)
    words = {
        f"{entry['name']} {entry['datatype']} {[int(size) for size in entry['shape']]}"
        for entry in (*facts["inputs"], *facts["outputs"])
    }
    assert words == {
        "CELL_POSITIONS INT64 [-1, 4]",
        "CELL_PROPERTIES FP32 [-1, 2]",
        "TRK_PARAMS FP32 [-1, 8]",
        "MEASUREMENTS FP32 [-1, 6]",
        "COVARIANCES FP32 [-1, 25]",
        "GEOMETRY_IDS INT64 [-1, 1]",
    }


def test_served_tracks_are_the_chains_own(client, chain):
    event = small_event()
    served = ask(client, event.cells)
    assert served["GEOMETRY_IDS"].ndim == 1, "its rank on the wire is 1, whatever the configuration says"
    tracks = unpack_tracks(served)
    assert_same(tracks, chain.find_tracks(event.cells))
    assert score_tracks(tracks, event.truth).efficiency > 0.8
    shuffled = chosen(event.cells, np.random.default_rng(2).permutation(len(event.cells)))
    assert_same(unpack_tracks(ask(client, shuffled)), tracks)


def test_the_raw_contract_gives_the_same_tracks(client, chain):
    cells = small_event().cells
    served = infer(client, "traccc-raw", CELLS=write_buffer(cells, chain.detector))
    assert_same(unpack_tracks(served), chain.find_tracks(cells))
    empty = infer(client, "traccc-raw", CELLS=write_buffer(cells_of(), chain.detector))
    assert [empty[name].shape for name in OUTPUTS] == [(0, 8), (0, 6), (0, 25), (0,)]


@pytest.mark.parametrize("rows", [(), ((PIXELS, 5, 5),)])
def test_events_without_tracks_have_empty_tensors(client, rows):
    served = ask(client, cells_of(*rows))
    assert [served[name].shape for name in OUTPUTS] == [(0, 8), (0, 6), (0, 25), (0,)]
    assert len(unpack_tracks(served)) == 0


def test_one_track_has_no_separator(client):
    served = ask(client, small_event(particles=1, seed=4).cells)
    assert len(served["TRK_PARAMS"]) == 1
    assert (served["GEOMETRY_IDS"] != 0).all()


def test_bad_cells_are_an_error_of_their_request_alone(client):
    cells = small_event(particles=1, seed=4).cells
    bad = [
        (cells_of((PIXELS, 1, 1), (NOWHERE, 1, 1)), f"geometry id {NOWHERE} in row 1 is not a module"),
        (cells_of((PIXELS, 1, -1)), r"channels \[1, -1\] in row 0 do not exist"),
        (cells_of((PIXELS, 1, 1), (PIXELS, 1, 1)), "rows 0 and 1 are the same cell"),
        (cells_of((PIXELS, 1, 1, float("nan"))), "CELL_PROPERTIES has a NaN"),
        (Cells(positions=cells.positions, properties=cells.properties[1:]), "expected one of each for every cell"),
    ]
    for wrong, told in bad:
        with pytest.raises(InferenceServerException, match=f"traccc-cpu: .*{told}"):
            ask(client, wrong)
        assert len(ask(client, cells)["TRK_PARAMS"]) == 1
    with pytest.raises(InferenceServerException, match="traccc-raw: CELLS has 9 bytes for"):
        infer(client, "traccc-raw", CELLS=np.ones(9, np.uint8))


def test_two_instances_at_once_give_the_same_tracks(client, chain):
    events = [small_event(particles=n, seed=9).cells for n in (4, 8, 12)] * 8
    with ThreadPoolExecutor(max_workers=6) as pool:
        answers = list(pool.map(lambda cells: unpack_tracks(ask(client, cells)), events))
    for cells, tracks in zip(events[:3], answers[:3], strict=True):
        assert_same(tracks, chain.find_tracks(cells))
    for n, tracks in enumerate(answers[3:], 3):
        assert_same(tracks, answers[n % 3])


def test_a_contract_that_it_does_not_know_is_refused_at_the_start(tmp_path, monkeypatch):
    raw_model(tmp_path / "repository" / "traccc-old")
    path = tmp_path / "repository" / "traccc-old" / CONFIG
    config = read_config(path)
    config.input[0].name = "FEATURES"
    write_config(path, config)
    monkeypatch.setenv("PYTHONPATH", str(package_parent()))
    told = "has the inputs FEATURES; this model knows CELL_POSITIONS and"
    with pytest.raises(DidNotStart, match=told), running_triton(tmp_path / "repository", tmp_path):
        pass
