"""The shortcuts of a network: taken where they change nothing, left out where they would."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import run
from exatrkx_hpc.tracking.constants import NETWORK_NAMES
from exatrkx_hpc.tracking.inference import (
    BLOCK,
    LARGE_BLOCK,
    _in_one_dnn,
    _same,
    _tried,
    faster,
    load_network,
    takes_less_time,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"), pytest.mark.slow]


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
    graph = str(_in_one_dnn(scripted(layers)).graph)
    # The first and the last are too narrow to gain.
    assert graph.count("mkldnn::_linear_pointwise") == 1
    assert graph.count("aten::linear") == 2
    assert graph.count("aten::relu") == 1


def test_only_a_network_that_judges_each_edge_alone_gets_its_edges_in_blocks():
    torch.manual_seed(3)
    assert not isinstance(faster(scripted(EachAlone())), torch.jit.ScriptModule)
    assert isinstance(faster(scripted(Together())), torch.jit.ScriptModule)
    assert isinstance(faster(scripted(nn.Linear(3, 8))), torch.jit.ScriptModule)


def test_a_change_that_answers_alike_is_taken_only_if_it_takes_less_time():
    module, slow = scripted(EachAlone()), scripted(EachAlone())
    slow.load_state_dict(module.state_dict())

    def three_times(hits: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        return [slow(hits, *edges) for _ in range(3)][-1]

    assert _same(three_times, module)
    assert takes_less_time(module, three_times)
    assert not takes_less_time(three_times, module)
    assert _tried(lambda _: three_times, module) is module
    assert _tried(lambda _: module, three_times) is module


def test_a_change_that_is_slower_for_small_events_alone_is_not_taken():
    module = scripted(EachAlone())

    def at_once(hits: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        times = 1 if edges and edges[0].shape[1] > 1000 else 3
        return [module(hits, *edges) for _ in range(times)][-1]

    def twice(hits: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        return [module(hits, *edges) for _ in range(2)][-1]

    assert not takes_less_time(at_once, twice)


def test_blocks_are_large_where_small_ones_are_no_faster():
    seen: list[int] = []

    class Watched(EachAlone):
        def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            seen.append(edges.shape[1])
            layers = 200 if edges.shape[1] == BLOCK else 1  # small blocks take much longer
            return [super(Watched, self).forward(hits, edges) for _ in range(layers)][-1]

    module = Watched().eval()
    network = faster(module)
    seen.clear()
    with torch.inference_mode():
        network(*event(n_edges=LARGE_BLOCK + 3))
    assert seen == [LARGE_BLOCK, 3]


#: Lets torch fuse on the CPU, as it does by itself on a GPU, and tells how often a network was compiled by that.
FUSED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch._C._jit_override_can_fuse_on_cpu(True)
torch._C._jit_set_te_must_use_llvm_cpu(False)
torch.set_num_threads(1)
from exatrkx_hpc.tracking import inference
if sys.argv[2] == "on":
    network = torch.jit.load(sys.argv[1]).eval()
else:
    from pathlib import Path
    network = inference.load_network(Path(sys.argv[1]))
with torch.inference_mode():
    for n in range(50, 55):
        network(torch.rand(n, 3))
print("fused" if "TensorExpr" in str(torch.jit.last_executed_optimized_graph()) else "plain")
"""


@pytest.mark.parametrize(("fuser", "found"), [("on", "fused"), ("off", "plain")])
def test_nothing_is_compiled_for_the_shape_of_an_event(fuser: str, found: str):
    path = asset("model_repos/exatrkx") / "embed" / "1" / "model.pt"
    done = run([sys.executable, "-c", FUSED, str(path), fuser])
    assert (done.returncode, done.stdout.strip()) == (0, found), done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU: one is here")
def test_a_gpu_that_is_not_there_is_told_as_that():
    path = asset("model_repos/exatrkx") / "embed" / "1" / "model.pt"
    with pytest.raises(ValueError, match=r"^no CUDA on this machine for cuda:3: torch .*; .*or run on the CPU$"):
        load_network(path, device="cuda:3")


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
    with pytest.raises(ValueError, match=r"model\.pt is not a readable TorchScript file"):
        load_network(tmp_path / "model.pt")
