"""The stages as Triton serves them, each alone and as the ensemble, over good, empty and bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from repositories import CONTRACT, small_repository
from stage_tensors import edges, floats, hits
from triton_helper import RunningTriton, running_triton
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from waiting import until

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.measure.metrics import fetch, model_times
from exatrkx_hpc.models.build import build

OUTPUTS = {name: tensors[-1].split()[0] for name, tensors in CONTRACT.items()}
Infer = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    work_dir = tmp_path_factory.mktemp("serving")
    built = build(asset("model_repos/exatrkx"), work_dir / "repository", device="cpu", instances=1)
    with running_triton(built.path, work_dir) as running:
        yield running


@pytest.fixture(scope="module")
def infer(server: RunningTriton) -> Iterator[Infer]:
    """`infer(model, TENSOR=array, ...)` returns the model's one output."""
    with InferenceServerClient(server.grpc) as client:

        def call(model: str, **tensors: np.ndarray) -> np.ndarray:
            inputs = []
            for name, array in tensors.items():
                entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
                entry.set_data_from_numpy(array)
                inputs.append(entry)
            return client.infer(model, inputs, client_timeout=60).as_numpy(OUTPUTS[model])

        yield call


def by_stages(infer: Infer, event: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take an event through the stages one by one: candidate edges, edges after the filter, labels."""
    candidates = infer("frnn", INPUT0=infer("embed", INPUT__0=event))
    scores = infer("filter", INPUT__0=event, INPUT__1=candidates)
    kept = infer("applyfilter", FILTER_SCORES=scores, EDGE_LIST=candidates)
    judged = infer("gnn", INPUT__0=event, INPUT__1=kept)
    return candidates, kept, infer("wcc", INPUT0=kept, INPUT1=judged, INPUT2=event)


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(*pairs.astype(np.int64).tolist(), strict=True))


def read_table(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)


def test_the_served_tensors_are_those_of_the_public_service(server: RunningTriton) -> None:
    with InferenceServerClient(server.grpc) as client:
        served = {name: client.get_model_metadata(name, as_json=True) for name in CONTRACT}
    words = {
        name: tuple(
            f"{entry['name']} {entry['datatype']} {[int(size) for size in entry['shape']]}"
            for entry in (*facts["inputs"], *facts["outputs"])
        )
        for name, facts in served.items()
    }
    expected = {name: tuple(t.removesuffix(" optional") for t in tensors) for name, tensors in CONTRACT.items()}
    assert words == expected


def test_frnn_finds_the_edges_of_the_reference(infer: Infer, reference_data: Path) -> None:
    stages = reference_data / "exatrkx" / "stages"
    found = infer("frnn", INPUT0=read_table(stages / "embed_output_OUTPUT__0.csv"))
    expected = as_set(read_table(stages / "frnn_output_OUTPUT0.csv"))
    assert (found.dtype, found.shape) == (np.int64, (2, 2334))
    assert as_set(found) == expected


def test_applyfilter_keeps_the_edges_of_the_reference(infer: Infer, reference_data: Path) -> None:
    stages = reference_data / "exatrkx" / "stages"
    candidates = read_table(stages / "frnn_output_OUTPUT0.csv").astype(np.int64)
    scores = read_table(stages / "filter_output_OUTPUT__0.csv").reshape(-1, 1)
    kept = infer("applyfilter", FILTER_SCORES=scores, EDGE_LIST=candidates)
    assert kept.shape == (2, 584)
    assert as_set(kept) == as_set(read_table(stages / "applyfilter_output_EDGE_LIST_AFTER_FILTER.csv"))


def test_every_reference_event_gets_one_label_a_hit(infer: Infer, reference_data: Path) -> None:
    files = sorted((reference_data / "exatrkx" / "events_scaled").glob("*.csv"))
    assert len(files) == 16
    for path in files:
        event = read_table(path)
        labels = infer("exatrkx", FEATURES=event)
        assert (labels.dtype, labels.shape) == (np.int64, (len(event),)), path.name


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 200])
def test_the_ensemble_does_what_its_stages_do(infer: Infer, n_hits: int) -> None:
    event = hits(n_hits)
    _, _, expected = by_stages(infer, event)
    labels = infer("exatrkx", FEATURES=event)
    assert labels.shape == (n_hits,)
    assert labels.tolist() == expected.tolist()


def test_hits_far_apart_have_no_candidate_and_a_label_each(infer: Infer) -> None:
    event = np.array([[0.01, 0.0, -0.9], [0.3, 0.99, 0.9]], dtype=np.float32)
    candidates, _, _ = by_stages(infer, event)
    assert candidates.shape == (2, 0)
    assert infer("exatrkx", FEATURES=event).tolist() == [0, 1]


def test_an_event_of_which_no_candidate_passes_gets_labels(infer: Infer) -> None:
    # The embedding sees each hit alone, the filter each pair alone: so a pair that the filter drops from a
    # large event is a candidate, and is dropped, in an event of its own, too.
    event = hits(2000)
    candidates, kept, _ = by_stages(infer, event)
    dropped = sorted(as_set(candidates) - as_set(kept))
    assert dropped
    pair = event[list(dropped[0])[::-1]]
    alone, passed, _ = by_stages(infer, pair)
    assert (alone.shape, passed.shape) == ((2, 1), (2, 0))
    assert infer("exatrkx", FEATURES=pair).tolist() == [0, 1]


def test_wcc_still_takes_the_two_inputs_of_the_public_service(infer: Infer) -> None:
    joined = edges((1, 0), (4, 3))
    assert infer("wcc", INPUT0=joined, INPUT1=floats(5, 5)).tolist() == [0, 0, 1, 2, 2]
    assert infer("wcc", INPUT0=joined, INPUT1=floats(5, 5), INPUT2=hits(6)).tolist() == [0, 0, 1, 2, 2, 3]
    assert infer("wcc", INPUT0=edges(), INPUT1=floats()).tolist() == []


NAN = np.full((2, 3), np.nan, dtype=np.float32)
MILLIMETRES = np.array([[0.1, 0, 0], [260, 0, 0]], dtype=np.float32)
MALFORMED = {
    "nan": ("exatrkx", {"FEATURES": NAN}, "embed: INPUT__0 has a NaN or an infinity in row 0"),
    "range": ("exatrkx", {"FEATURES": MILLIMETRES}, "embed: INPUT__0 has r / 3000 mm = 260 in row 1, which is out of"),
    "wcc-hits": (
        "wcc",
        {"INPUT0": edges((1, 0)), "INPUT1": floats(1), "INPUT2": MILLIMETRES},
        "wcc: INPUT2 has r / 3000 mm = 260 in row 1",
    ),
    "fused-nan": ("exatrkx_fused", {"FEATURES": NAN}, "exatrkx_fused: FEATURES has a NaN or an infinity in row 0"),
    "fused-range": ("exatrkx_fused", {"FEATURES": MILLIMETRES}, "exatrkx_fused: FEATURES has r / 3000 mm = 260"),
    "fused-columns": (
        "exatrkx_fused",
        {"FEATURES": np.zeros((4, 2), np.float32)},
        "unexpected shape for input 'FEATURES' for model 'exatrkx_fused'. Expected [-1,3], got [4,2]",
    ),
    "fused-rank": ("exatrkx_fused", {"FEATURES": np.zeros(3, np.float32)}, "Expected [-1,3], got [3]"),
    "fused-type": ("exatrkx_fused", {"FEATURES": np.zeros((4, 3))}, "'FP64', but model 'exatrkx_fused' expects 'FP32'"),
    "columns": ("exatrkx", {"FEATURES": np.zeros((4, 2), np.float32)}, "unexpected shape for input 'FEATURES'"),
    "rank": ("exatrkx", {"FEATURES": np.zeros(3, np.float32)}, "unexpected shape for input 'FEATURES'"),
    "type": ("exatrkx", {"FEATURES": np.zeros((4, 3))}, "FP64"),
    "name": ("exatrkx", {"HITS": hits(3)}, "HITS"),
    "embed-nan": ("embed", {"INPUT__0": NAN}, "embed: INPUT__0 has a NaN"),
    "frnn-nan": ("frnn", {"INPUT0": np.full((2, 8), np.nan, np.float32)}, "frnn: INPUT0 has a NaN"),
    "filter-range": ("filter", {"INPUT__0": hits(3), "INPUT__1": edges((3, 0))}, "less than 3"),
    "gnn-negative": ("gnn", {"INPUT__0": hits(3), "INPUT__1": edges((1, -1))}, "gnn: INPUT__1 has hit numbers"),
    "gnn-no-hits": ("gnn", {"INPUT__0": hits(0), "INPUT__1": edges((1, 0))}, "less than 0"),
    "scores": (
        "applyfilter",
        {"FILTER_SCORES": np.zeros((3, 1), np.float32), "EDGE_LIST": edges((1, 0))},
        "applyfilter: FILTER_SCORES has shape [3, 1]; expected one score for each of 1 edges",
    ),
    "wcc-huge": ("wcc", {"INPUT0": edges((2**62, 0)), "INPUT1": floats(1)}, "wcc: INPUT0 has hit numbers"),
    "wcc-range": (
        "wcc",
        {"INPUT0": edges((5, 0)), "INPUT1": floats(1), "INPUT2": hits(5)},
        "wcc: INPUT0 has hit numbers from 0 to 5",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_bad_input_is_an_error_and_the_server_lives_on(server: RunningTriton, infer: Infer, case: str) -> None:
    model, tensors, says = MALFORMED[case]
    with pytest.raises(InferenceServerException) as error:
        infer(model, **tensors)
    assert says in str(error.value)
    assert server.is_ready()
    assert infer(model if "fused" in model else "exatrkx", FEATURES=hits(5)).shape == (5,)


def test_a_refused_request_is_a_failure_of_its_model_and_no_success(server: RunningTriton, infer: Infer) -> None:
    address = server.grpc.replace(":8001", ":8002")
    before = fetch(address)
    good, bad = hits(5), hits(5)
    bad[2, 1] = 3.1  # phi in radians
    for model, tensor in (("exatrkx", "FEATURES"), ("exatrkx_fused", "FEATURES"), ("embed", "INPUT__0")):
        infer(model, **{tensor: good})
        for _ in range(3):
            with pytest.raises(InferenceServerException, match=r"Refused: \w+: \w+ has phi / pi = 3.1 in row 2"):
                infer(model, **{tensor: bad})

    def counted(model: str) -> tuple[float, float]:
        return {one.model: (one.successes, one.failures) for one in model_times(fetch(address), before)}[model]

    # Of an ensemble Triton counts each twice, whichever stage refuses. It may count after it has answered.
    wanted = {"exatrkx": (1, 6), "exatrkx_fused": (1, 3), "embed": (2, 6), "frnn": (1, 0), "wcc": (1, 0)}
    for model, counts in wanted.items():
        until(lambda m=model, c=counts: counted(m) == c, what=f"{counts} of {model}", deadline=10)
    edges_of_nobody = {"INPUT0": edges((5, 0)), "INPUT1": floats(1), "INPUT2": hits(5)}
    with pytest.raises(InferenceServerException, match="wcc: INPUT0 has hit numbers from 0 to 5"):
        infer("wcc", **edges_of_nobody)
    until(lambda: counted("wcc") == (1, 1), what="the failure of wcc", deadline=10)


CODED = """\
import os, sys
sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
import triton_python_backend_utils as triton
from exatrkx_hpc.tracking.serving import Stage


class TritonPythonModel(Stage):
    def _answer(self, request):
        return triton.InferenceResponse(error=triton.TritonError("coded: ask another", triton.TritonError.UNAVAILABLE))
"""


def test_an_error_of_another_status_keeps_it(tmp_path: Path, triton: None) -> None:
    repository = build(asset("model_repos/exatrkx"), tmp_path / "models", device="cpu", fused=False).path
    for name in ("exatrkx", "frnn", "gnn", "filter", "applyfilter", "wcc"):
        shutil.rmtree(repository / name)
    (repository / "embed/1/model.py").write_text(CODED)
    with running_triton(repository, tmp_path) as up, InferenceServerClient(up.grpc) as client:
        tensor = InferInput("INPUT__0", [5, 3], "FP32")
        tensor.set_data_from_numpy(hits(5))
        with pytest.raises(InferenceServerException) as error:
            client.infer("embed", [tensor])
    assert (error.value.status(), error.value.message()) == ("StatusCode.UNAVAILABLE", "coded: ask another")


def test_several_instances_share_the_work(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    out = build(repository, tmp_path / "out", device="cpu", instances=2).path
    with running_triton(out, tmp_path) as server:
        assert server.log.read_text().count("ModelInstanceInitialize: frnn_0_") == 2
        assert all(name.startswith(server.prefix) for name in server.segments())
        assert len(server.segments()) == 4


def test_an_environment_is_used(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("export MARKED=yes\n")
    code = repository / "frnn/1/model.py"
    code.write_text(f"import os\nprint('MARKED', os.environ.get('MARKED'), flush=True)\n{code.read_text()}")
    out = build(repository, tmp_path / "out", device="cpu", environment=environment).path
    with running_triton(out, tmp_path) as server:
        assert "MARKED yes" in server.log.read_text()
