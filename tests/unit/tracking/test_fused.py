"""The fused model: its parameters, what it refuses to load, and what `check` and `build` know of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from repositories import edit
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

pytest.importorskip("torch")

import torch

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.pipeline import is_fused, load_tracker
from exatrkx_hpc.models.repository import CONFIG, read_config, read_model
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS
from exatrkx_hpc.tracking.memory import keep_freed_memory
from exatrkx_hpc.tracking.parameters import settings_of
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.serving_fused import FusedStage
from exatrkx_hpc.tracking.tensors import BadTensor

pytestmark = pytest.mark.slow


SHIPPED = asset("model_repos/exatrkx")


def fused(repository: Path = SHIPPED, kind: str = "CPU", **parameters: str) -> FusedStage:
    """Set the stage up with the arguments that Triton gives."""
    folder = repository / "exatrkx_fused"
    stated = {key: value.string_value for key, value in read_config(folder / CONFIG).parameters.items()} | parameters
    stage = FusedStage()
    stage.initialize(
        {
            "model_name": "exatrkx_fused",
            "model_config": json.dumps({"parameters": {k: {"string_value": v} for k, v in stated.items()}}),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    return stage


def some_hits(n: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "repository"))


def set_parameter(repository: Path, model: str, key: str, value: str) -> None:
    edit(repository, model, lambda config: setattr(config.parameters[key], "string_value", value))


def test_it_gives_what_the_pipeline_gives() -> None:
    stage, find = fused(), load_tracker(SHIPPED)
    for n_hits in (0, 1, 2, 300):
        (labels,) = stage.compute({"FEATURES": some_hits(n_hits)})
        assert (labels.dtype, labels.shape) == (np.int64, (n_hits,))
        assert labels.tolist() == find(some_hits(n_hits)).tolist()


def test_its_constants_are_parameters() -> None:
    assert settings_of({"radius": "2", "max_neighbours": "7", "threads": "9"}).max_neighbours == 7
    assert fused(gnn_cut="0.5").pipeline.settings.gnn_cut == 0.5
    assert fused().pipeline.settings == DEFAULT_SETTINGS
    alone = fused(filter_cut="1").compute({"FEATURES": some_hits(200)})[0]
    assert sorted(alone.tolist()) == list(range(200))


BAD = {
    "rank": (np.zeros(3, np.float32), "FEATURES has shape [3]; expected [N, 3]"),
    "columns": (np.zeros((4, 2), np.float32), "FEATURES has shape [4, 2]; expected [N, 3]"),
    "type": (np.zeros((4, 3)), "FEATURES is float64; expected float32"),
    "nan": (np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), "FEATURES has a NaN or an infinity in row 1"),
    "infinity": (np.array([[0, 0, -np.inf]], np.float32), "FEATURES has a NaN or an infinity in row 0"),
    "radius": (np.array([[-0.1, 0, 0]], np.float32), "FEATURES has r / 3000 mm = -0.1 in row 0, which is out of range"),
    "angle": (np.array([[0.1, 3.1, 0]], np.float32), "phi / pi = 3.1 in row 0, which is out of range; expected -1.001"),
    "length": (
        np.array([[0.1, 1, 400]], np.float32),
        "z / 400 mm = 400 in row 0, which is out of range; expected -100",
    ),
}


def no_network(*tensors: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a network was asked")


@pytest.mark.parametrize("case", BAD)
def test_bad_hits_are_named_with_what_was_expected(case: str) -> None:
    hits, says = BAD[case]
    stage = FusedStage()  # hits are looked at before any network is
    stage.pipeline = Pipeline(embed=no_network, filter=no_network, gnn=no_network)
    with pytest.raises(BadTensor) as error:
        stage.compute({"FEATURES": hits})
    assert says in str(error.value)


def test_it_has_the_weights_of_its_siblings_even_behind_a_link(copy: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "exatrkx_fused").symlink_to(copy / "exatrkx_fused")
    with pytest.raises(FileNotFoundError, match=r"exatrkx_fused: the weight .*/linked/embed/1/model.pt is missing"):
        fused(linked)
    for name in ("embed", "filter", "gnn"):
        shutil.copytree(SHIPPED / name, linked / name)
        shutil.rmtree(copy / name)
    assert len(fused(linked).compute({"FEATURES": some_hits(5)})[0]) == 5


def test_a_wrong_network_is_not_loaded(copy: Path) -> None:
    (copy / "filter/1/model.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"exatrkx_fused: .*filter/1/model\.pt is not a readable TorchScript file"):
        fused(copy)
    shutil.copy(copy / "gnn/1/model.pt", copy / "embed/1/model.pt")
    shutil.copy(copy / "gnn/1/model.pt", copy / "filter/1/model.pt")
    with pytest.raises(ValueError, match=r"exatrkx_fused: embed: the network does not take INPUT__0 float32 \[N, 3\]"):
        fused(copy)


class Judge(torch.nn.Module):
    """Is right for the smallest events, and for larger ones what `fails` makes of it."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        many = edges.shape[1] > 100
        if many and self.fails == "raises":
            raise RuntimeError("too many edges for me")
        if many and self.fails == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB\nand so on")
        if many and self.fails == "shape":
            edges = edges[:, :7]
        return hits.index_select(0, edges[0])[:, 0] + hits.index_select(0, edges[1])[:, 0]


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("raises", "too many edges for me"),
        ("memory", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        ("shape", r"gnn gave shape \[7\]; expected one logit for \d+ edges"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_fails_for_events_of_a_usual_size_is_not_loaded(copy: Path, fails: str, says: str) -> None:
    torch.jit.script(Judge(fails)).save(str(copy / "gnn/1/model.pt"))
    with pytest.raises(ValueError, match=rf"^exatrkx_fused: a sample event of 217 hits fails: {says}$"):
        fused(copy)
    with pytest.raises(ModelError, match=rf": a sample event of 217 hits fails: {says}; run 'exatrkx-hpc models check"):
        load_tracker(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU: one is here")
def test_a_gpu_that_is_not_there_is_told_as_that() -> None:
    with pytest.raises(ValueError, match=r"^exatrkx_fused: no CUDA on this machine for cuda:0: torch .*run on the CPU"):
        fused(kind="GPU")


def test_labels_of_tensors_are_tensors_that_may_be_changed() -> None:
    stage, hits = fused(), some_hits(50)
    (labels,) = stage.compute({"FEATURES": torch.from_numpy(hits)})
    assert labels.dtype == torch.int64
    labels += 1
    assert labels.tolist() == (stage.compute({"FEATURES": hits})[0] + 1).tolist()
    for array in vars(stage.pipeline.stages(torch.from_numpy(hits))).values():
        array.add_(1)


def test_check_finds_constants_that_differ(copy: Path) -> None:
    set_parameter(copy, "applyfilter", "cut", "0.3")
    (finding,) = check(copy)
    assert (finding.model, finding.what) == ("exatrkx_fused", "filter_cut is 0.21, but cut of applyfilter is 0.3")
    set_parameter(copy, "exatrkx_fused", "filter_cut", "0.3")
    assert check(copy) == ()


def test_check_finds_a_second_set_of_weights(copy: Path) -> None:
    shutil.copytree(copy / "gnn/1", copy / "gnn/2")
    (finding,) = check(copy)
    assert (finding.model, finding.what) == (
        "exatrkx_fused",
        "it runs 1/model.pt of gnn, but Triton serves 2/model.pt",
    )
    shutil.rmtree(copy / "gnn/1")
    assert [one.model for one in check(copy)] == ["exatrkx_fused"]


def test_check_looks_at_weights_of_its_own(copy: Path) -> None:
    set_parameter(copy, "exatrkx_fused", "networks", "1")
    findings = check(copy)
    assert [finding.model for finding in findings] == ["exatrkx_fused"] * 3
    assert findings[0].what == f"the weight {copy}/exatrkx_fused/1/embed/1/model.pt is missing"
    for name in ("embed", "filter", "gnn"):
        shutil.copytree(copy / name, copy / "exatrkx_fused/1" / name)
    assert check(copy) == ()


@pytest.mark.parametrize(("device", "kind"), [("cpu", 2), ("gpu", 1)])
def test_a_build_gives_it_instances_and_threads(tmp_path: Path, device: str, kind: int) -> None:
    built = build(SHIPPED, tmp_path / "out", device=device, instances=3, threads=2)
    model = read_model(built.path / "exatrkx_fused")
    assert is_fused(model)
    assert model.parameters["threads"] == "2"
    (group,) = model.config.instance_group
    assert (group.count, group.kind) == (3, kind)
    assert ModelInstanceGroup.Kind.Name(kind) == f"KIND_{device.upper()}"
    assert check(built.path) == ()


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_a_build_may_leave_it_out(tmp_path: Path, device: str) -> None:
    built = build(SHIPPED, tmp_path / "out", device=device, fused=False)
    assert "exatrkx_fused" not in built.models
    assert not (built.path / "exatrkx_fused").exists()
    assert check(built.path) == ()


def test_this_machine_keeps_freed_memory() -> None:
    assert keep_freed_memory()
