"""The networks: shapes for every size, TorchScript, symmetry, and no device of their own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exatrkx_hpc.tracking.simulation.synthetic import generate_event  # noqa: E402
from exatrkx_hpc.tracking.training.networks import EdgeLayer, Embed, Filter, Gnn, HitFeatures, Line, _in_blocks, outward  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["module", "script"])
def networks(request):
    torch.manual_seed(0)
    modules = {"embed": Embed().eval(), "filter": Filter().eval(), "gnn": Gnn().eval()}
    if request.param == "module":
        return modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return {name: torch.jit.script(module) for name, module in modules.items()}


@pytest.fixture(scope="module")
def hits():
    return torch.from_numpy(generate_event(np.random.default_rng(0), n_tracks=20).hits)


@pytest.fixture(scope="module")
def edges(hits):
    return torch.randint(len(hits), (2, 300), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_an_embedding_has_eight_numbers_a_hit(networks, hits, n):
    place = networks["embed"](hits[:n])
    assert place.shape == (n, 8)
    assert place.dtype == torch.float32


@pytest.mark.parametrize("name", ["filter", "gnn"])
@pytest.mark.parametrize(("n", "e"), [(0, 0), (1, 0), (2, 0), (2, 1), (7, 20)])
def test_an_edge_has_one_logit(networks, hits, name, n, e):
    edges = torch.randint(max(n, 1), (2, e), generator=torch.Generator().manual_seed(1))
    logits = networks[name](hits[:n], edges)
    assert logits.shape == ((e, 1) if name == "filter" else (e,))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_hits_at_odd_places_give_finite_numbers(networks):
    odd = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 7.4], [0.3, 1.0, -7.4], [0.3, 1.0, -7.4]])
    edges = torch.tensor([[0, 0, 2, 1], [1, 2, 3, 1]])
    assert torch.isfinite(networks["embed"](odd)).all()
    assert torch.isfinite(networks["filter"](odd, edges)).all()
    assert torch.isfinite(networks["gnn"](odd, edges)).all()


@pytest.mark.parametrize("name", ["filter", "gnn"])
def test_the_direction_in_which_an_edge_is_named_does_not_matter(networks, hits, edges, name):
    assert torch.allclose(networks[name](hits, edges), networks[name](hits, edges.flip(0)), atol=1e-4)


@pytest.mark.parametrize("name", ["filter", "gnn"])
def test_a_turned_detector_gives_the_same_answer(networks, hits, edges, name):
    turned = hits.clone()
    turned[:, 1] = torch.remainder(hits[:, 1] + 0.7 + 1.0, 2.0) - 1.0
    assert not torch.allclose(turned, hits)
    assert torch.allclose(networks[name](hits, edges), networks[name](turned, edges), atol=1e-3)


def test_the_graph_network_looks_at_the_other_edges_and_the_filter_does_not(networks, hits, edges):
    alone = edges[:, :1]
    assert torch.allclose(networks["filter"](hits, edges)[:1], networks["filter"](hits, alone), atol=1e-5)
    crowded = torch.cat([alone, torch.stack([alone[0].expand(50), torch.arange(50)])], dim=1)
    assert not torch.allclose(networks["gnn"](hits, crowded)[:1], networks["gnn"](hits, alone), atol=1e-4)


@pytest.mark.parametrize("name", ["filter", "gnn"])
@pytest.mark.parametrize("bad", [(300, 0), (0, 10**12), (-1, 3), (5, -(10**12)), (-1, 10**12)])
def test_an_edge_of_a_hit_that_is_not_there_gets_a_nan_and_changes_no_other(networks, hits, edges, name, bad):
    hits, edges = hits[:300], edges % 300 if len(hits) > 300 else edges % len(hits)
    bad = tuple(len(hits) if end == 300 else end for end in bad)
    expected = networks[name](hits, edges)
    mixed = torch.cat([edges[:, :7], torch.tensor(bad).reshape(2, 1), edges[:, 7:]], dim=1)
    logits = networks[name](hits, mixed)
    assert logits.shape == (mixed.shape[1], *expected.shape[1:])
    assert torch.isnan(logits).reshape(-1).nonzero().reshape(-1).tolist() == [7]
    assert torch.allclose(torch.cat([logits[:7], logits[8:]]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["filter", "gnn"])
@pytest.mark.parametrize("n", [0, 1])
def test_edges_of_an_event_without_such_hits_get_nothing_but_nan(networks, hits, name, n):
    logits = networks[name](hits[:n], torch.tensor([[1, 2], [1, 7]]))
    assert logits.shape == ((2, 1) if name == "filter" else (2,))
    assert torch.isnan(logits).all()


@pytest.mark.parametrize("network", [Filter, Gnn])
def test_edges_come_in_blocks_on_other_devices_too(network):
    module = network()
    assert [part.shape[1] for part in _in_blocks(torch.empty(2, 11, device="meta"), 4, 5, False)] == [5, 5, 1]
    assert [part.shape[1] for part in _in_blocks(torch.empty(2, 11), 4, 5, False)] == [4, 4, 3]
    assert (module.block, module.large_block) == (1 << 14, 1 << 20)


def test_edges_run_outwards():
    hits = torch.tensor([[0.3, 0.0, 0.0], [0.1, 0.0, 0.0], [0.1, 0.0, 1.0]])
    inner, outer = outward(hits, torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
    assert inner.tolist() == [1, 1, 1, 1]
    assert outer.tolist() == [0, 0, 2, 2]


def test_a_layer_on_edges_and_their_hits_is_the_linear_layer_on_all_three_side_by_side():
    layer = EdgeLayer(5, 4, 6)
    edge, hit, inner, outer = torch.randn(7, 5), torch.randn(3, 4), torch.randint(3, (7,)), torch.randint(3, (7,))
    weight = torch.cat([layer.of_edge.weight, layer.of_inner.weight, layer.of_outer.weight], dim=1)
    row = torch.cat([edge, hit[inner], hit[outer]], dim=1)
    expected = torch.relu(row @ weight.T + layer.of_edge.bias)
    assert torch.allclose(layer(edge, layer.ends(hit), inner, outer), expected, atol=1e-6)


@pytest.mark.parametrize("network", [Filter, Gnn])
def test_the_answer_does_not_depend_on_the_blocks_in_which_the_edges_are_worked_on(network, hits, edges):
    torch.manual_seed(0)
    module = network().eval()
    whole = module(hits, edges)
    for block in (70, 299, 300):
        module.block = block
        assert torch.allclose(module(hits, edges), whole, atol=1e-5)
    assert torch.allclose(module.train()(hits, edges), whole, atol=1e-5)


def test_the_line_through_two_hits_is_described():
    # From r = 0.3 m, z = 0 to r = 0.6 m, z = 0.3 m, across the seam of phi by 0.02 pi.
    hits = torch.tensor([[0.1, 0.99, 0.0], [0.2, -0.99, 0.75]])
    line = Line()(HitFeatures()(hits), hits[:, 1], torch.tensor([0]), torch.tensor([1]))
    tamed = line / (1 - line.abs())
    dphi, z0 = 0.02 * torch.pi, -0.3
    assert tamed[0, 1:].tolist() == pytest.approx(
        [10 * dphi, 1.5 * dphi / 0.3, 10 * dphi / 0.3, 0.5 * 1.0, 4.0 * z0, 25.0 * z0], rel=1e-3
    )


@pytest.mark.parametrize("network", [Embed, Filter, Gnn])
def test_a_network_runs_on_the_device_of_its_weights(network):
    # The meta device holds shapes only: a tensor that the network made on the CPU would not fit there.
    # Without an edge, because the look for edges of hits that are not there reads a number back.
    hits = torch.empty(5, 3, device="meta")
    edges = torch.empty(2, 0, dtype=torch.int64, device="meta")
    module = network().to("meta")
    out = module(hits) if network is Embed else module(hits, edges)
    assert out.device.type == "meta"


def test_the_sizes_are_those_of_the_stand_ins():
    sizes = [sum(p.numel() for p in network().parameters()) for network in (Embed, Filter, Gnn)]
    assert sizes == [20_648, 1_601, 12_321]
