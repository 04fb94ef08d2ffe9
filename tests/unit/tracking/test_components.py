"""Connected components: every way to find them gives every hit its label, numbered by first hits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from devices import CUDA, CUPY, labels_on_cuda, labels_on_cupy
from twins import twin

from exatrkx_hpc.tracking import kernels
from exatrkx_hpc.tracking.components import label_components

Labels = Callable[..., np.ndarray]


def on_torch(edges: np.ndarray, logits: np.ndarray, **options) -> np.ndarray:
    torch = pytest.importorskip("torch")
    labels = label_components(torch.from_numpy(edges), torch.from_numpy(logits), **options)
    assert isinstance(labels, torch.Tensor)
    return labels.numpy()


def on_twin(edges: np.ndarray, logits: np.ndarray, **options) -> np.ndarray:
    return kernels.labels_of(twin(), edges, logits, **options)


@pytest.fixture(params=["cpu", "torch", "twin", CUDA, CUPY])
def label(request: pytest.FixtureRequest) -> Labels:
    """One of the ways to find components."""
    ways = {"cpu": label_components, "torch": on_torch, "twin": on_twin, "cuda": labels_on_cuda, "cupy": labels_on_cupy}
    return ways[request.param]


def pairs(*edges: tuple[int, int]) -> np.ndarray:
    return np.array(edges, dtype=np.int64).reshape(-1, 2).T.copy()


def scores(*logits: float) -> np.ndarray:
    return np.array(logits, dtype=np.float32)


def by_networkx(edges: np.ndarray, n_hits: int) -> list[int]:
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    graph.add_nodes_from(range(n_hits))
    graph.add_edges_from(edges.T.tolist())
    labels = np.empty(n_hits, dtype=np.int64)
    for number, hits in enumerate(sorted(networkx.connected_components(graph), key=min)):
        labels[list(hits)] = number
    return labels.tolist()


def test_no_hit_one_hit_and_no_edge(label: Labels):
    for n in (0, 1, 5):
        labels = label(pairs(), scores(), cut=0.75, n_hits=n)
        assert labels.dtype == np.int64
        assert labels.tolist() == list(range(n))


def test_the_first_hits_number_the_tracks(label: Labels):
    edges = pairs((5, 1), (4, 2), (6, 5))
    assert label(edges, scores(9, 9, 9), cut=0.75, n_hits=8).tolist() == [0, 1, 2, 3, 2, 1, 1, 4]


def test_an_edge_below_the_cut_joins_nothing(label: Labels):
    edges = pairs((1, 0), (2, 1), (3, 2))
    assert label(edges, scores(9, 1.09, 1.11), cut=0.75, n_hits=4).tolist() == [0, 0, 1, 1]
    assert label(edges, scores(np.nan, np.inf, -np.inf), cut=0.75, n_hits=4).tolist() == [0, 1, 1, 2]


def test_loops_and_edges_given_twice_are_harmless(label: Labels):
    edges = pairs((1, 0), (0, 1), (2, 2), (1, 0))
    assert label(edges, scores(9, 9, 9, 9), cut=0.75, n_hits=3).tolist() == [0, 0, 1]


def test_scores_may_have_a_second_axis(label: Labels):
    assert label(pairs((1, 0), (2, 1)), scores(9, -9).reshape(2, 1), cut=0.75, n_hits=3).tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["chain", "star", "random", "shuffled", "pairs"])
def test_every_form_of_graph(label: Labels, kind: str):
    rng, n = np.random.default_rng(3), 700
    random = rng.integers(0, n, (2, n // 2))
    edges = {
        "chain": np.stack([np.arange(1, n), np.arange(n - 1)])[:, ::-1].copy(),
        "star": np.stack([np.full(n - 1, n - 1), np.arange(n - 1)]),
        "random": np.stack([random.max(axis=0), random.min(axis=0)])[:, np.argsort(random.max(axis=0))],
        "shuffled": random,
        "pairs": np.stack([np.arange(1, n, 2), np.arange(0, n, 2)]),
    }[kind].astype(np.int64)
    labels = label(np.ascontiguousarray(edges), np.full(edges.shape[1], 9, np.float32), cut=0.75, n_hits=n)
    assert labels.tolist() == by_networkx(edges, n)


def test_without_a_number_of_hits_the_largest_one_counts():
    assert label_components(pairs((3, 0)), scores(9), cut=0.75).tolist() == [0, 1, 2, 0]
    assert label_components(pairs(), scores(), cut=0.75).shape == (0,)


@pytest.mark.slow
def test_an_event_of_100_000_hits():
    rng, n = np.random.default_rng(4), 100_000
    edges = np.sort(rng.integers(0, n, (2, n)), axis=0)[::-1].copy()
    labels = label_components(edges, np.full(n, 9, np.float32), cut=0.75, n_hits=n)
    assert labels.shape == (n,)
    assert (labels[edges[0]] == labels[edges[1]]).all()
    assert labels.max() + 1 == len(set(by_networkx(edges, n)))
