"""Edges by number, by radius and in both directions: as kernel, served, and without a server."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from triton_helper import running_triton

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.install import install
from exatrkx_hpc.models.pipeline import load_tracker, pipeline_settings
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Feature, Features, radii_of
from exatrkx_hpc.tracking.frnn import in_order
from exatrkx_hpc.tracking.scoring.agreement import same_partition
from exatrkx_hpc.tracking.simulation.synthetic import generate_event, hits_text
from exatrkx_hpc.work.inference.probe import ask_model

pytestmark = pytest.mark.slow


torch = pytest.importorskip("torch")

SHIPPED = asset("model_repos/exatrkx")
EDGES = np.array([[1, 2, 3, 3], [0, 1, 1, 2]], dtype=np.int64)
RADII = np.array([0.3, 0.1, 0.2, 0.2], dtype=np.float32)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_three_orders(kind) -> None:
    edges, radii = kind(EDGES), kind(RADII)
    assert in_order(edges, "number", radii).tolist() == EDGES.tolist()
    assert in_order(edges, "radius", radii).tolist() == [[1, 1, 1, 3], [0, 2, 3, 2]]
    assert in_order(edges, "both", radii).tolist() == [[1, 2, 3, 3, 0, 1, 1, 2], [0, 1, 1, 2, 1, 2, 3, 3]]
    for order in ("number", "radius", "both"):
        assert in_order(edges[:, :0], order, radii).shape == (2, 0)


def test_a_radius_is_r_or_of_x_and_y() -> None:
    hits = np.array([[3.0, 4.0], [0.5, 0.5]], dtype=np.float32)
    plane = Features(columns=(Feature(name="x", least=-9, most=9), Feature(name="y", least=-9, most=9, scale=2.0)))
    assert radii_of(hits, plane).argsort().tolist() == [1, 0]
    assert radii_of(np.zeros((2, 3), np.float32), DEFAULT_FEATURES).shape == (2,)
    with pytest.raises(ValueError, match="need a feature r, or x and y"):
        radii_of(hits, Features(columns=plane.columns[:1]))


class InnerFirst(torch.nn.Module):
    """An edge network that knows an edge only from its inner to its outer hit, as acorn's directed graphs have it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = torch.jit.load(str(SHIPPED / name / "1" / "model.pt"))

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        outward = hits[edges[0], 0] <= hits[edges[1], 0]
        return torch.where(outward, self.network(hits, edges).reshape(-1), torch.full([edges.size(1)], -9.0))


@pytest.mark.triton
def test_networks_that_want_the_inner_hit_first_find_their_tracks(tmp_path: Path) -> None:
    files = {}
    for name in ("filter", "gnn"):
        files[name] = tmp_path / f"{name}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(InnerFirst(name).eval()), str(files[name]))
    own = Path(shutil.copytree(SHIPPED, tmp_path / "own"))
    install(own, source=SHIPPED, weights=files, constants={"edge_order": "radius"})
    models = build(own, tmp_path / "models", device="cpu").path
    assert check(models) == () and pipeline_settings(models).edge_order == "radius"
    event = generate_event(np.random.default_rng(5), n_tracks=30)
    expected = load_tracker(SHIPPED)(event.hits)
    assert same_partition(load_tracker(models)(event.hits), expected)
    (tmp_path / "event.csv").write_text(hits_text(event))
    with running_triton(models, tmp_path, deadline=200) as server:
        for model in ("exatrkx", "exatrkx_fused"):
            found = ask_model(server.grpc, model, [str(tmp_path / "event.csv")]).values["LABELS"]
            assert same_partition(found, expected), model


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--edge-order is 'angle'; use number or radius or both"):
        install(tmp_path / "new", source=SHIPPED, weights={}, constants={"edge_order": "angle"})
