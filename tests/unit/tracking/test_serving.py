"""The stages as Triton serves them, each alone and as the ensemble, over good, empty and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from repositories import CONTRACT, small_repository
from triton_helper import RunningTriton, running_triton
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.measure.metrics import fetch, model_times
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.tracking.serving import (
    ApplyFilterStage,
    FrnnStage,
    Stage,
    TorchScriptStage,
    WccStage,
    refuse_numpy_2,
)
from exatrkx_hpc.tracking.tensors import MAX_HITS, BadTensor

OUTPUTS = {name: tensors[-1].split()[0] for name, tensors in CONTRACT.items()}
Infer = Callable[..., np.ndarray]


# --- one stage at a time, in this process ---------------------------------------------------------------


def _stage(kind: type[Stage], name: str, **parameters: str) -> Stage:
    """Set up a stage with the arguments that Triton gives."""
    folder = asset("model_repos/exatrkx") / name
    config = read_config(folder / CONFIG)
    stated = {key: value.string_value for key, value in config.parameters.items()} | parameters
    as_json = {
        "input": [{"name": entry.name, "dims": list(entry.dims)} for entry in config.input],
        "output": [{"name": entry.name, "dims": list(entry.dims)} for entry in config.output],
        "parameters": {key: {"string_value": value} for key, value in stated.items()},
    }
    stage = kind()
    stage.initialize(
        {
            "model_name": name,
            "model_config": json.dumps(as_json),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return stage


def edges(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T.copy()


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def hits(n: int, seed: int = 7) -> np.ndarray:
    """`n` hits anywhere in the detector."""
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)


def test_wcc_labels_every_hit_when_it_is_given_the_hits() -> None:
    wcc = _stage(WccStage, "wcc")
    pair = {"INPUT0": edges((1, 0)), "INPUT1": floats(9)}
    assert wcc.compute(pair)[0].tolist() == [0, 0]
    assert wcc.compute(pair | {"INPUT2": hits(4)})[0].tolist() == [0, 0, 1, 2]


def test_the_cuts_are_parameters() -> None:
    candidates = {"EDGE_LIST": edges((1, 0), (2, 1)), "FILTER_SCORES": floats(0.0, -3.0)}
    kept = [
        _stage(ApplyFilterStage, "applyfilter", cut=cut).compute(candidates)[0].shape for cut in ("0.01", "0.21", "1")
    ]
    assert kept == [(2, 2), (2, 1), (2, 0)]
    joined = {"INPUT0": edges((1, 0)), "INPUT1": floats(0.0)}
    assert _stage(WccStage, "wcc", cut="0.49").compute(joined)[0].tolist() == [0, 0]
    assert _stage(WccStage, "wcc", cut="0.51").compute(joined)[0].tolist() == [0, 1]


def test_probabilities_are_compared_with_the_cuts_as_they_are() -> None:
    given = {"EDGE_LIST": edges((1, 0), (2, 1)), "FILTER_SCORES": floats(0.25, 0.2)}
    assert _stage(ApplyFilterStage, "applyfilter", scores="probabilities").compute(given)[0].shape == (2, 1)
    joined = {"INPUT0": edges((1, 0), (2, 1)), "INPUT1": floats(0.76, 0.74)}
    assert _stage(WccStage, "wcc", scores="probabilities").compute(joined)[0].tolist() == [0, 0, 1]
    for kind, name in ((ApplyFilterStage, "applyfilter"), (WccStage, "wcc")):
        with pytest.raises(ValueError, match="scores is 'odds'; use 'logits' or 'probabilities'"):
            _stage(kind, name, scores="odds")


def test_the_radius_and_the_neighbour_limit_are_parameters() -> None:
    line = np.zeros((4, 8), dtype=np.float32)
    line[:, 0] = range(4)
    for parameters, n_edges in (({}, 3), ({"radius": "2.5"}, 5), ({"radius": "0.5"}, 0)):
        assert _stage(FrnnStage, "frnn", **parameters).compute({"INPUT0": line})[0].shape == (2, n_edges)
    limited = _stage(FrnnStage, "frnn", radius="9", max_neighbours="1").compute({"INPUT0": line})[0]
    assert limited.shape[1] < 6


BAD = [
    (FrnnStage, "frnn", {"INPUT0": np.zeros((2, 7), np.float32)}, "INPUT0 has shape [2, 7]; expected [N, 8]"),
    (FrnnStage, "frnn", {"INPUT0": np.full((2, 8), np.inf, np.float32)}, "an infinity in row 0"),
    (
        ApplyFilterStage,
        "applyfilter",
        {"FILTER_SCORES": floats(1, 2), "EDGE_LIST": edges((1, 0))},
        "FILTER_SCORES has shape [2]; expected one score for each of 1 edges",
    ),
    (
        ApplyFilterStage,
        "applyfilter",
        {"FILTER_SCORES": floats(1, np.nan), "EDGE_LIST": edges((1, 0), (2, 0))},
        "FILTER_SCORES has a NaN for edge 1",
    ),
    (WccStage, "wcc", {"INPUT0": edges((0, -1)), "INPUT1": floats(1)}, "hit numbers from -1 to 0"),
    (
        WccStage,
        "wcc",
        {"INPUT0": edges((2, 0)), "INPUT1": floats(1), "INPUT2": np.zeros((2, 3), np.float32)},
        "hit numbers from 0 to 2; expected 0 or more and less than 2",
    ),
    (WccStage, "wcc", {"INPUT0": edges((MAX_HITS, 0)), "INPUT1": floats(1)}, f"less than {MAX_HITS}"),
    (WccStage, "wcc", {"INPUT0": np.zeros((3, 1), np.int64), "INPUT1": floats(1)}, "expected [2, E]"),
]


@pytest.mark.parametrize(("kind", "name", "inputs", "says"), BAD, ids=lambda value: str(value)[-40:])
def test_a_bad_tensor_is_named_with_what_was_expected(kind, name: str, inputs: dict, says: str) -> None:
    with pytest.raises(BadTensor) as error:
        _stage(kind, name).compute(inputs)
    assert says in str(error.value)


def test_a_network_without_weights_says_which_file_is_missing() -> None:
    pytest.importorskip("torch")
    with pytest.raises(FileNotFoundError, match=r"gnn: the weight .*gnn/1/other\.pt is missing"):
        _stage(TorchScriptStage, "gnn", weights="other.pt")


def test_a_network_that_does_not_answer_as_promised_is_not_loaded() -> None:
    pytest.importorskip("torch")
    weights = asset("model_repos/exatrkx") / "embed/1/model.pt"
    with pytest.raises(
        ValueError, match=r"gnn: .*the network does not take INPUT__0 float32 \[N, 3\] and INPUT__1 int64"
    ):
        _stage(TorchScriptStage, "gnn", weights=str(weights))
    weights = asset("model_repos/exatrkx") / "gnn/1/model.pt"
    with pytest.raises(ValueError, match=r"embed: .*the network does not take INPUT__0 float32 \[N, 3\] and give one"):
        _stage(TorchScriptStage, "embed", weights=str(weights))
    with pytest.raises(ValueError, match=r"embed: .*config\.pbtxt is not a readable TorchScript file"):
        weights = asset("model_repos/exatrkx") / "gnn/1/../config.pbtxt"
        _stage(TorchScriptStage, "embed", weights=str(weights))


@pytest.mark.parametrize("n_hits", [0, 1, 2, 50])
def test_networks_answer_in_the_promised_shape(n_hits: int) -> None:
    torch = pytest.importorskip("torch")
    event = torch.from_numpy(hits(n_hits))
    (embedding,) = _stage(TorchScriptStage, "embed").compute({"INPUT__0": event})
    assert (embedding.shape, embedding.dtype) == ((n_hits, 8), torch.float32)
    for n_edges in (0, 1, n_hits) if n_hits else (0,):
        some = torch.zeros((2, n_edges), dtype=torch.int64)
        for network, shape in (("filter", (n_edges, 1)), ("gnn", (n_edges,))):
            (scores,) = _stage(TorchScriptStage, network).compute({"INPUT__0": event, "INPUT__1": some})
            assert (scores.shape, scores.dtype) == (shape, torch.float32)


@pytest.mark.parametrize(("version", "refused"), [("1.26.4", False), ("2.0.0", True), ("10.1", True)])
def test_numpy_2_is_refused_unless_allowed(version: str, refused: bool) -> None:
    refuse_numpy_2(version, {"numpy2": "allow"})
    if refused:
        with pytest.raises(RuntimeError, match="put numpy<2 into"):
            refuse_numpy_2(version, {})
    else:
        refuse_numpy_2(version, {})


# --- the real server ------------------------------------------------------------------------------------


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


@pytest.mark.triton
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


@pytest.mark.triton
def test_frnn_finds_the_edges_of_the_reference(infer: Infer, reference_data: Path) -> None:
    stages = reference_data / "exatrkx" / "stages"
    found = infer("frnn", INPUT0=read_table(stages / "embed_output_OUTPUT__0.csv"))
    expected = as_set(read_table(stages / "frnn_output_OUTPUT0.csv"))
    assert (found.dtype, found.shape) == (np.int64, (2, 2334))
    assert as_set(found) == expected


@pytest.mark.triton
def test_applyfilter_keeps_the_edges_of_the_reference(infer: Infer, reference_data: Path) -> None:
    stages = reference_data / "exatrkx" / "stages"
    candidates = read_table(stages / "frnn_output_OUTPUT0.csv").astype(np.int64)
    scores = read_table(stages / "filter_output_OUTPUT__0.csv").reshape(-1, 1)
    kept = infer("applyfilter", FILTER_SCORES=scores, EDGE_LIST=candidates)
    assert kept.shape == (2, 584)
    assert as_set(kept) == as_set(read_table(stages / "applyfilter_output_EDGE_LIST_AFTER_FILTER.csv"))


@pytest.mark.triton
def test_every_reference_event_gets_one_label_a_hit(infer: Infer, reference_data: Path) -> None:
    files = sorted((reference_data / "exatrkx" / "events_scaled").glob("*.csv"))
    assert len(files) == 16
    for path in files:
        event = read_table(path)
        labels = infer("exatrkx", FEATURES=event)
        assert (labels.dtype, labels.shape) == (np.int64, (len(event),)), path.name


@pytest.mark.triton
@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 200])
def test_the_ensemble_does_what_its_stages_do(infer: Infer, n_hits: int) -> None:
    event = hits(n_hits)
    _, _, expected = by_stages(infer, event)
    labels = infer("exatrkx", FEATURES=event)
    assert labels.shape == (n_hits,)
    assert labels.tolist() == expected.tolist()


@pytest.mark.triton
def test_hits_far_apart_have_no_candidate_and_a_label_each(infer: Infer) -> None:
    event = np.array([[0.01, 0.0, -0.9], [0.3, 0.99, 0.9]], dtype=np.float32)
    candidates, _, _ = by_stages(infer, event)
    assert candidates.shape == (2, 0)
    assert infer("exatrkx", FEATURES=event).tolist() == [0, 1]


@pytest.mark.triton
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


@pytest.mark.triton
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


@pytest.mark.triton
@pytest.mark.parametrize("case", MALFORMED)
def test_bad_input_is_an_error_and_the_server_lives_on(server: RunningTriton, infer: Infer, case: str) -> None:
    model, tensors, says = MALFORMED[case]
    with pytest.raises(InferenceServerException) as error:
        infer(model, **tensors)
    assert says in str(error.value)
    assert server.is_ready()
    assert infer(model if "fused" in model else "exatrkx", FEATURES=hits(5)).shape == (5,)


@pytest.mark.triton
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
    found = {one.model: (one.successes, one.failures) for one in model_times(fetch(address), before)}
    # Of an ensemble Triton counts each twice, whichever stage refuses.
    assert found["exatrkx"] == (1, 6) and found["exatrkx_fused"] == (1, 3)
    assert found["embed"] == (2, 6) and found["frnn"] == (1, 0) and found["wcc"] == (1, 0)
    edges_of_nobody = {"INPUT0": edges((5, 0)), "INPUT1": floats(1), "INPUT2": hits(5)}
    with pytest.raises(InferenceServerException, match="wcc: INPUT0 has hit numbers from 0 to 5"):
        infer("wcc", **edges_of_nobody)
    assert {one.model: one.failures for one in model_times(fetch(address), before)}["wcc"] == 1


CODED = """\
import os, sys
sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
import triton_python_backend_utils as triton
from exatrkx_hpc.tracking.serving import Stage


class TritonPythonModel(Stage):
    def _answer(self, request):
        return triton.InferenceResponse(error=triton.TritonError("coded: ask another", triton.TritonError.UNAVAILABLE))
"""


@pytest.mark.triton
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


@pytest.mark.triton
def test_several_instances_share_the_work(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    out = build(repository, tmp_path / "out", device="cpu", instances=2).path
    with running_triton(out, tmp_path) as server:
        assert server.log.read_text().count("ModelInstanceInitialize: frnn_0_") == 2
        assert all(name.startswith(server.prefix) for name in server.segments())
        assert len(server.segments()) == 4


@pytest.mark.triton
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
