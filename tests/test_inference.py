"""The shortcuts of a network: taken where they change nothing, left out where they would."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from exatrkx_hpc.assets import asset
from exatrkx_hpc.tracking.constants import NETWORK_NAMES
from exatrkx_hpc.tracking.inference import BLOCK, faster, load_network

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the pipeline runs where several share a machine; other tests get their threads back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class EachAlone(nn.Module):
    """Judges each edge by the places of its hits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 1)
        )

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([hits[edges[0]], hits[edges[1]]], dim=1))


class Together(EachAlone):
    """Judges each edge against the mean of all."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        alone = self.layers(torch.cat([hits[edges[0]], hits[edges[1]]], dim=1))
        return alone - alone.mean(dim=0, keepdim=True)


def event(n_hits: int = 500, n_edges: int = 3 * BLOCK + 5) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    hits = torch.rand(n_hits, 3, generator=source)
    return hits, torch.randint(n_hits, (2, n_edges), generator=source)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.script(module.eval())


@pytest.mark.parametrize("kind", [EachAlone, Together])
@pytest.mark.parametrize("n_edges", [0, 1, BLOCK, 2 * BLOCK, 3 * BLOCK + 5])
def test_the_answer_is_the_same_for_any_number_of_edges(kind, n_edges: int):
    torch.manual_seed(2)
    module = scripted(kind())
    hits, edges = event(n_edges=n_edges)
    with torch.inference_mode():
        answer, expected = faster(module)(hits, edges), module(hits, edges)
    assert answer.shape == expected.shape == (n_edges, 1)
    assert torch.allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_what_one_dnn_can_do_it_does():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("GPU or not, this torch has no oneDNN")
    layers = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    graph = str(faster(scripted(layers)).graph)
    # The first and the last are too narrow to gain.
    assert graph.count("mkldnn::_linear_pointwise") == 1
    assert graph.count("aten::linear") == 2
    assert graph.count("aten::relu") == 1


def test_only_a_network_that_judges_each_edge_alone_gets_its_edges_in_blocks():
    torch.manual_seed(3)
    assert not isinstance(faster(scripted(EachAlone())), torch.jit.ScriptModule)
    assert isinstance(faster(scripted(Together())), torch.jit.ScriptModule)
    assert isinstance(faster(scripted(nn.Linear(3, 8))), torch.jit.ScriptModule)


class Strange(nn.Module):
    """Takes what no network of the pipeline takes."""

    def forward(self, one: torch.Tensor, two: torch.Tensor, three: torch.Tensor) -> torch.Tensor:
        return one + two + three


def test_a_network_that_takes_something_else_is_left_to_be_refused_by_others():
    network = faster(scripted(Strange()))
    assert network(*torch.ones(3, 4)).tolist() == [3.0] * 4


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_the_shipped_networks_answer_the_same(name: str):
    path = asset("model_repos/exatrkx") / name / "1" / "model.pt"
    inputs = event(n_edges=BLOCK + 9)[: 1 if name == "embed" else 2]
    with torch.inference_mode():
        answer, expected = load_network(path)(*inputs), torch.jit.load(str(path))(*inputs)
    assert torch.allclose(answer, expected, rtol=1e-3, atol=1e-3)


def test_a_file_that_is_no_network_is_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.pt is no TorchScript file"):
        load_network(tmp_path / "model.pt")
