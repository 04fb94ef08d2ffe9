"""The stages one at a time, in this process: their parameters, and what they say of bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stage_tensors import edges, floats, hits

from exatrkx_hpc.base.assets import asset
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


def _stage(kind: type[Stage], name: str, **parameters: str) -> Stage:
    """Set up a stage with the arguments that Triton gives."""
    folder = asset("model_repos/exatrkx") / name
    config = read_config(folder / CONFIG)
    stated = {key: value.string_value for key, value in config.parameters.items()}
    stated |= {"numpy2": "allow"} | parameters  # no Triton passes these tensors on
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
@pytest.mark.slow
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
