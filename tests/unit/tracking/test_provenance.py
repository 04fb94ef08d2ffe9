"""The shipped weights: their hash, what they depend on, and the tracks that they find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from exatrkx_hpc.base.assets import asset, package_parent
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.scoring.score import score_event, total
from exatrkx_hpc.tracking.simulation.acts import is_installed, simulate_event
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.tracking.training.provenance import SHIPPED, SHIPPED_SHA256, Provenance, compare
from exatrkx_hpc.tracking.training.train import hash_state, load

pytestmark = pytest.mark.slow


def test_the_shipped_weights_have_the_hash_that_the_code_and_the_model_card_name():
    assert hash_state(load(asset("model_repos/exatrkx"))) == SHIPPED_SHA256
    card = package_parent() / "docs" / "reference" / "shipped-models.md"
    if card.exists():  # not in a wheel
        assert SHIPPED_SHA256 in card.read_text()


def test_equal_weights_are_the_shipped_ones_whatever_made_them():
    assert compare(SHIPPED_SHA256, replace(SHIPPED, torch="9"), quick=False) == "these are the shipped weights"


def test_every_reason_for_other_weights_is_named():
    made = replace(SHIPPED, seed=1, torch="2.4.0", instructions="AVX2", pyacts="")
    assert compare("0" * 64, made, quick=True) == (
        "not the shipped weights, as expected: --quick, seed 1 instead of 20260, torch 2.4.0 instead of 2.13.0, "
        "instructions AVX2 instead of AVX512, pyacts not used instead of 48.1.0"
    )


def test_other_weights_without_a_reason_are_a_surprise():
    assert "was the code of the training changed?" in compare("0" * 64, SHIPPED, quick=False)


def test_this_machine_has_a_provenance():
    here = Provenance.here(seed=5, acts=False)
    assert here.seed == 5
    assert here.torch.startswith("2.")
    assert here.instructions
    assert here.pyacts == ""
    assert here.differences(here) == []


@pytest.mark.skipif(not is_installed(), reason="pyacts is not installed")
def test_the_release_of_acts_counts():
    assert int(Provenance.here(seed=5, acts=True).pyacts.partition(".")[0]) >= 48


def unseen(source, n_tracks: int, n_events: int):
    """Score the shipped weights on events that neither the training nor a figure in the documentation has seen."""
    pipeline = Pipeline.load(asset("model_repos/exatrkx"))
    events = [source(np.random.default_rng([31_416, number]), n_tracks=n_tracks) for number in range(n_events)]
    return total(score_event(pipeline.find_tracks(event.hits), event) for event in events)


@pytest.mark.skipif(not is_installed(), reason="pyacts is not installed")
def test_the_shipped_weights_find_the_tracks_of_simulated_events():
    small, dense = unseen(simulate_event, 192, 8), unseen(simulate_event, 770, 1)
    assert small.particles > 400
    assert small.efficiency >= 0.95
    assert small.fake_rate <= 0.05
    assert small.duplicate_rate <= 0.05
    assert dense.efficiency >= 0.90
    assert dense.fake_rate <= 0.05


def test_the_shipped_weights_find_the_tracks_of_helices_too():
    helices = unseen(generate_event, 180, 8)
    assert helices.efficiency >= 0.95
    assert helices.fake_rate <= 0.05
    assert unseen(generate_event, 20, 8).efficiency >= 0.95
