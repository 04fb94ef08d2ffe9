"""The neighbour search: every way to run it gives the edges that counting by hand gives, in the same order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from devices import CUDA, CUPY, edges_on_cuda, edges_on_cupy
from reference_files import reference_folder
from scipy.spatial import cKDTree
from twins import twin

from exatrkx_hpc.tracking import kernels, tiles
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

Search = Callable[..., np.ndarray]


def on_torch(places: np.ndarray, **options) -> np.ndarray:
    torch = pytest.importorskip("torch")
    edges = fixed_radius_edges(torch.from_numpy(places), **options)
    assert edges.dtype == torch.int64
    return edges.numpy()


def on_twin(places: np.ndarray, **options) -> np.ndarray:
    return kernels.edges_within(twin(places.shape[1]), places, **options)


@pytest.fixture(params=["cpu", "torch", "twin", CUDA, CUPY])
def search(request: pytest.FixtureRequest) -> Search:
    """One of the ways to run the search."""
    ways = {"cpu": fixed_radius_edges, "torch": on_torch, "twin": on_twin, "cuda": edges_on_cuda, "cupy": edges_on_cupy}
    return ways[request.param]


def by_hand(places: np.ndarray, *, radius: float, max_neighbours: int) -> np.ndarray:
    """The definition, with all N x N distances: near, among the nearest of i (ties: the smaller number), i > j."""
    there = places.astype(np.float64)
    square = np.zeros((len(there), len(there)))
    for axis in there.T:
        square += (axis[:, None] - axis[None]) ** 2
    np.fill_diagonal(square, np.inf)
    rank = np.argsort(np.argsort(square, axis=1, kind="stable"), axis=1)
    i, j = np.nonzero((square <= radius**2) & (rank < max_neighbours) & np.tri(len(there), k=-1, dtype=bool))
    return np.stack([i, j])


def cloud(n: int, *, seed: int = 1, width: int = 8, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (n, width)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 1, 2, 3, 128, 129, 500])
def test_every_size_of_event(search: Search, n: int):
    edges = search(cloud(n), radius=1.6, max_neighbours=500)
    assert edges.dtype == np.int64
    assert edges.shape[0] == 2
    assert np.array_equal(edges, by_hand(cloud(n), radius=1.6, max_neighbours=500))


@pytest.mark.parametrize("limit", [0, 1, 40, 148, 149])
def test_of_a_crowd_the_nearest_are_kept(search: Search, limit: int):
    crowd = cloud(150, spread=0.7)
    edges = search(crowd, radius=1.6, max_neighbours=limit)
    assert np.array_equal(edges, by_hand(crowd, radius=1.6, max_neighbours=limit))


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_of_neighbours_equally_far_away_the_smaller_number_is_nearer(search: Search, limit: int):
    grid = np.zeros((125, 8), dtype=np.float32)
    grid[:, :3] = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)
    grid = grid[np.random.default_rng(2).permutation(125)]
    edges = search(grid, radius=1.5, max_neighbours=limit)
    assert np.array_equal(edges, by_hand(grid, radius=1.5, max_neighbours=limit))


def test_hits_in_one_place_are_neighbours(search: Search):
    here = np.full((60, 8), 3.0, dtype=np.float32)
    assert search(here, radius=1.6, max_neighbours=500).shape == (2, 60 * 59 // 2)
    assert np.array_equal(search(here, radius=1.6, max_neighbours=5), by_hand(here, radius=1.6, max_neighbours=5))


def test_a_distance_of_just_the_radius_is_near(search: Search):
    line = np.zeros((6, 8), dtype=np.float32)
    line[:, 4] = np.arange(6) * 0.5 - 1.25
    assert search(line, radius=0.5, max_neighbours=9).T.tolist() == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]
    assert search(line, radius=np.nextafter(0.5, 0), max_neighbours=9).shape == (2, 0)


def test_an_embedding_far_from_the_origin_is_searched_as_well(search: Search):
    far = cloud(400) + np.float32(1000)
    assert np.array_equal(search(far, radius=1.6, max_neighbours=500), by_hand(far, radius=1.6, max_neighbours=500))


def test_one_hit_far_from_all_others_changes_nothing(search: Search):
    # So far that float32 products could not tell the others apart: the search on the CPU takes another way.
    places = cloud(300)
    places[17] = 1e6
    assert np.array_equal(search(places, radius=1.6, max_neighbours=30), by_hand(places, radius=1.6, max_neighbours=30))


@pytest.mark.slow
@pytest.mark.parametrize("width", [3])
def test_an_embedding_of_any_width(search: Search, width: int):
    places = cloud(300, width=width)
    edges = search(places, radius=0.1, max_neighbours=500)
    assert edges.shape[1] > 0
    assert np.array_equal(edges, by_hand(places, radius=0.1, max_neighbours=500))


def test_a_float64_embedding_is_not_rounded():
    places = np.zeros((2, 8))
    places[1, 0] = 1.6 + 1e-12
    assert fixed_radius_edges(places, radius=1.6, max_neighbours=5).shape == (2, 0)


@pytest.mark.slow
def test_scipys_tree_finds_the_same_edges_in_a_large_event():
    places = cloud(10_000, spread=1.2)
    edges = fixed_radius_edges(places, radius=1.6, max_neighbours=500)
    pairs = cKDTree(places).query_pairs(1.6, output_type="ndarray")
    assert edges.shape[1] == len(pairs) > 10_000
    assert np.array_equal(edges[:, np.lexsort((edges[1], edges[0]))], edges)
    assert set(map(tuple, edges[:, ::50].T.tolist())) <= set(map(tuple, pairs[:, ::-1].tolist()))


@pytest.mark.slow
def test_an_event_of_100_000_hits():
    places = cloud(100_000, spread=2.5)
    edges = fixed_radius_edges(places, radius=1.6, max_neighbours=500)
    first = places[edges[0]].astype(np.float64) - places[edges[1]]
    assert edges.shape[1] > 10_000
    assert (np.linalg.norm(first, axis=1) <= 1.6).all()
    some = np.arange(0, 100_000, 997)
    counts = [len(found) - 1 for found in cKDTree(places).query_ball_point(places[some], 1.6)]
    assert (np.bincount(edges.reshape(-1), minlength=100_000)[some] == counts).all()


@pytest.mark.slow
def test_the_pairs_of_a_large_crowd_are_forgotten_on_the_way():
    # All four million pairs are near; only those of the five smallest numbers, the nearest of all, are kept.
    crowd = np.full((3000, 8), 3.0, dtype=np.float32)
    edges = fixed_radius_edges(crowd, radius=1.6, max_neighbours=5)
    expected = [(i, j) for i in range(3000) for j in range(min(i, 5))]
    assert edges.T.tolist() == [list(pair) for pair in expected]


def test_tiles_far_from_each_other_are_not_compared():
    places = cloud(4000, spread=3.0)
    near = sum(len(a) for a, _ in tiles._close_tiles(tiles.tiles_of(places, radius=1.0), 1.0))
    assert near < 0.5 * 32 * 33 / 2


def test_the_reference_stage_has_these_edges(search: Search):
    stages = reference_folder() / "exatrkx" / "stages"
    embedding = np.loadtxt(stages / "embed_output_OUTPUT__0.csv", delimiter=",", dtype=np.float32)
    theirs = np.loadtxt(stages / "frnn_output_OUTPUT0.csv", delimiter=",").astype(np.int64)
    ours = search(embedding, radius=1.6, max_neighbours=500)
    theirs = theirs if len(theirs) == 2 else theirs.T
    assert {tuple(sorted(pair)) for pair in ours.T.tolist()} == {tuple(sorted(pair)) for pair in theirs.T.tolist()}
    assert ours.shape == theirs.shape == (2, 2334)
