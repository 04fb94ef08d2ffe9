"""The filter's cut, on arrays of every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exatrkx_hpc.tracking.filtering import accepted, apply_filter, logit

EDGES = np.array([[1, 2, 3, 4], [0, 1, 2, 3]], dtype=np.int64)


@pytest.mark.parametrize("cut", [1e-6, 0.21, 0.5, 0.75, 0.999])
def test_the_logit_is_the_inverse_of_the_sigmoid(cut: float):
    assert 1 / (1 + math.exp(-logit(cut))) == pytest.approx(cut, rel=1e-6)
    assert logit(cut) == np.float32(logit(cut))


def test_a_cut_of_nothing_passes_all_and_one_of_certainty_none():
    logits = np.array([-1e30, -200.0, 0.0, 1e30], dtype=np.float32)
    assert accepted(logits, cut=0.0).all()
    assert not accepted(logits, cut=1.0).any()
    assert apply_filter(EDGES, logits, cut=1.0).shape == (2, 0)


def test_the_same_edges_pass_as_by_their_probability():
    logits = np.random.default_rng(0).normal(0, 3, 10_000).astype(np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for cut in (0.21, 0.75):
        assert np.array_equal(accepted(logits, cut=cut), probability > cut)


def test_probabilities_are_compared_as_they_are():
    probability = np.array([0.0, 0.2, 0.22, 0.74, 0.76, 1.0, np.nan], dtype=np.float32)
    assert accepted(probability, cut=0.21, scores="probabilities").tolist() == [False, False, *[True] * 4, False]
    kept = apply_filter(EDGES, probability[2:6], cut=0.75, scores="probabilities")
    assert kept.tolist() == [[3, 4], [2, 3]]


def test_a_score_that_is_no_number_is_not_accepted():
    assert accepted(np.array([np.nan, np.inf, -np.inf], dtype=np.float32), cut=0.21).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_edges_keep_their_order_and_type(shape: tuple[int, ...]):
    kept = apply_filter(EDGES, np.array([1, -5, 2, 3], dtype=np.float32).reshape(shape), cut=0.21)
    assert kept.dtype == np.int64
    assert kept.flags.c_contiguous
    assert kept.tolist() == [[1, 3, 4], [0, 2, 3]]


@pytest.mark.parametrize("n", [0, 1])
def test_no_edge_and_one_edge(n: int):
    assert apply_filter(EDGES[:, :n], np.full((n, 1), 9, dtype=np.float32), cut=0.21).shape == (2, n)


def test_tensors_give_tensors():
    torch = pytest.importorskip("torch")
    kept = apply_filter(torch.from_numpy(EDGES), torch.tensor([[1.0], [-5], [2], [-3]]), cut=0.21)
    assert isinstance(kept, torch.Tensor)
    assert kept.tolist() == [[1, 3], [0, 2]]


def test_the_reference_stage_keeps_these_edges(reference_data):
    stages = reference_data / "exatrkx" / "stages"
    edges, logits, theirs = (
        np.loadtxt(stages / f"{name}.csv", delimiter=",")
        for name in ("frnn_output_OUTPUT0", "filter_output_OUTPUT__0", "applyfilter_output_EDGE_LIST_AFTER_FILTER")
    )
    ours = apply_filter(edges.astype(np.int64), logits.astype(np.float32), cut=0.21)
    assert ours.shape == (2, 584)
    assert set(map(tuple, ours.T.tolist())) == set(map(tuple, theirs.astype(np.int64).T.tolist()))
