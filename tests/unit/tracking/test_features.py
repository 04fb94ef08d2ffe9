"""What a hit is, is data of the repository: installed, checked, served and used without a server."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from repositories import edit
from triton_helper import running_triton
from tritonclient.grpc.model_config_pb2 import ModelParameter

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.dims import feed_hits, set_features
from exatrkx_hpc.models.install import install
from exatrkx_hpc.models.pipeline import load_tracker, pipeline_digest
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, FEATURES_FILE, features_of, parse_features, read_features
from exatrkx_hpc.tracking.scoring.agreement import same_partition
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.tracking.tensors import BadTensor, check_hits
from exatrkx_hpc.work.inference.probe import ask_model

pytestmark = pytest.mark.slow


torch = pytest.importorskip("torch")

SHIPPED = asset("model_repos/exatrkx")
#: A site's own: metres, radian, the other order, and two columns that the shipped networks do not know.
COLUMNS = [
    {"name": "z", "scale": 1000, "unit": "mm", "least": -40, "most": 40},
    {"name": "r", "scale": 1000, "unit": "mm", "least": 0, "most": 30},
    {"name": "phi", "least": -3.1416, "most": 3.1416},
    {"name": "eta", "least": -20, "most": 20},
    {"name": "cells", "least": 0, "most": 100},
]


class Adapter(torch.nn.Module):
    """A shipped network behind the site's features."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = torch.jit.load(str(SHIPPED / name / "1" / "model.pt"))

    def usual(self, hits: torch.Tensor) -> torch.Tensor:
        return torch.stack([hits[:, 1] / 3.0, hits[:, 2] / 3.14159265, hits[:, 0] / 0.4], dim=1)


class Embed(Adapter):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return self.network(self.usual(hits))


class Edges(Adapter):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.network(self.usual(hits), edges)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's repository of five features, built for the CPU."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "columns.json").write_text(json.dumps(COLUMNS))
    files = {}
    for name in ("embed", "filter", "gnn"):
        files[name] = folder / f"{name}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = (Embed if name == "embed" else Edges)(name).eval()
            torch.jit.save(torch.jit.script(module), str(files[name]))
    with pytest.raises(ModelError, match=r"is its sign flipped, or does it want other features \(--features FILE\)"):
        install(folder / "no", source=SHIPPED, weights=files, constants={})
    install(folder / "own", source=SHIPPED, weights=files, constants={}, features=folder / "columns.json")
    return build(folder / "own", folder / "models", device="cpu").path


def test_other_features_are_another_version_of_the_pipeline(site: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(site, tmp_path / "other"))
    assert pipeline_digest(other) == pipeline_digest(site)
    (other / FEATURES_FILE).write_text((site / FEATURES_FILE).read_text().replace("1000", "400"))
    assert pipeline_digest(other) != pipeline_digest(site)


def test_the_repository_says_what_a_hit_is(site: Path) -> None:
    assert check(site) == () and [str(one) for one in read_features(site).columns][:3] == [
        "z / 1000 mm",
        "r / 1000 mm",
        "phi",
    ]
    event = generate_event(np.random.default_rng(11), n_tracks=40).hits
    hits, unknown = features_of(event, read_features(site))
    assert hits.shape == (len(event), 5) and unknown == ("cells",)
    np.testing.assert_allclose(hits[:, 1], event[:, 0] * 3, rtol=1e-5)
    labels = load_tracker(site)(hits)
    assert same_partition(labels, load_tracker(SHIPPED)(event))
    for spoilt, says in ((hits * 1000, "z / 1000 mm = .* is out of range"), (event, r"shape .*; expected \[N, 5\]")):
        with pytest.raises(ModelError, match=says):
            load_tracker(site)(spoilt)


@pytest.mark.triton
def test_a_server_takes_hits_of_these_features(site: Path, tmp_path: Path) -> None:
    event = generate_event(np.random.default_rng(12), n_tracks=30).hits
    hits, _ = features_of(event, read_features(site))
    np.savetxt(tmp_path / "event.csv", hits, delimiter=",")
    np.savetxt(tmp_path / "millimetres.csv", hits * 1000, delimiter=",")
    with running_triton(site, tmp_path, deadline=200) as server:
        found = {
            model: ask_model(server.grpc, model, [str(tmp_path / "event.csv")]).values["LABELS"]
            for model in ("exatrkx", "exatrkx_fused")
        }
        assert all(same_partition(labels, load_tracker(site)(hits)) for labels in found.values())
        with pytest.raises(ModelError, match=r"z / 1000 mm = .* which is out of range; expected -40 to 40"):
            ask_model(server.grpc, "exatrkx_fused", [str(tmp_path / "millimetres.csv")])


def test_a_model_that_takes_hits_of_another_width_is_a_fault(site: Path, tmp_path: Path) -> None:
    copy = build(site, tmp_path / "copy", device="cpu").path
    (copy / FEATURES_FILE).write_text(json.dumps(COLUMNS[:4]))
    findings = check(copy)
    assert {one.model for one in findings} == {"embed", "filter", "gnn", "wcc", "exatrkx_fused"}
    assert "has the dims [-1, 5], but a hit has 4 features (z, r, phi, eta)" in findings[0].what
    (copy / FEATURES_FILE).write_text("{}")
    (finding,) = check(copy)
    assert finding.model == FEATURES_FILE and "contains no list of columns" in finding.what
    edit(copy, "wcc", lambda config: None)


def test_edges_by_radius_follow_the_features_and_need_a_radius(site: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(site, tmp_path / "own"))
    edit(own, "frnn", lambda config: config.parameters["edge_order"].CopyFrom(ModelParameter(string_value="radius")))
    feed_hits(own, len(COLUMNS))
    assert [list(entry.dims) for entry in read_config(own / "frnn" / CONFIG).input] == [[-1, 8], [-1, 5]]
    (tmp_path / "columns.json").write_text(json.dumps(COLUMNS[:4]))
    set_features(own, tmp_path / "columns.json", parse_features(tmp_path / "columns.json"))
    assert [list(entry.dims) for entry in read_config(own / "frnn" / CONFIG).input] == [[-1, 8], [-1, 4]]
    (own / FEATURES_FILE).write_text(json.dumps([COLUMNS[0], *COLUMNS[2:4], COLUMNS[4]]))
    assert ("frnn", "edges by radius need a feature r, or x and y") in [(one.model, one.what) for one in check(own)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "contains no list of columns"),
        ('{"r": 1}', "contains no list of columns"),
        ('[{"name": "r"}]', "column 0 needs name, least and most"),
        ('[{"name": "r", "least": 0, "most": 1, "size": 3}]', "column 0 needs name, least and most"),
        ('[{"name": "r", "least": 1, "most": 1}]', "needs least below most"),
        ('[{"name": "r", "least": 0, "most": 1, "scale": 0}]', "needs least below most and a scale other than 0"),
        ('[{"name": "r", "least": 0, "most": 1, "scale": -1}]', "column r needs a scale above 0"),
        ('[{"name": "r", "least": "0", "most": 1}]', "has a value that is not a number"),
        ('[{"name": "r", "least": true, "most": 2}]', "has a value that is not a number"),
        ('[{"name": "r", "least": 0, "most": NaN}]', "has a value that is not a number"),
        ('[{"name": 3, "least": 0, "most": 1}]', "not text"),
        ('[{"name": "r", "least": 0, "most": 1}, {"name": "r", "least": 0, "most": 1}]', "has r twice"),
    ],
)
def test_a_file_that_says_nothing_clear_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        parse_features(tmp_path / "f.json")
    done = exatrkx_hpc("models", "install", "--features", "f.json", "--out", "new", cwd=tmp_path)
    assert says in complaint(done, 7)
    assert not (tmp_path / "new").exists()


def test_without_a_file_a_hit_is_as_ever(tmp_path: Path) -> None:
    assert read_features(tmp_path) == DEFAULT_FEATURES
    hits = generate_event(np.random.default_rng(1), n_tracks=5).hits
    np.testing.assert_allclose(features_of(hits, DEFAULT_FEATURES)[0], hits, rtol=1e-6)
    check_hits("FEATURES", hits)
    with pytest.raises(BadTensor, match=r"r / 3000 mm = .* out of range; expected 0 to 10"):
        check_hits("FEATURES", hits * np.float32(3000))
